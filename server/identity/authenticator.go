package identity

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	gcpresource "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
)

// AuthenticatorConfig says who may be a client.
type AuthenticatorConfig struct {
	// Client reaches the API server, which reviews tokens and publishes the keys that they are signed with.
	Client kubernetes.Interface
	Log    *slog.Logger // Nil discards.

	// AgentAudience is what an agent's token is for, and AgentAccount whose it is, exactly.
	AgentAudience string
	AgentAccount  types.NamespacedName

	// GRPCAudience is what the token of a proxyless gRPC client is for; empty if there are no such clients.
	GRPCAudience string
	// GRPCNamespaces are the namespaces whose service accounts may be proxyless gRPC clients; empty means all.
	GRPCNamespaces []string
	// GRPCAnonymous lets clients without a token be proxyless gRPC clients, of any namespace: not every language's gRPC
	// can send one to its xDS server.
	GRPCAnonymous bool
}

// Authenticator decides who a client is and what it may ask for. It is safe for concurrent use.
//
// There are two kinds of clients. An agent acts for the one node that its token is bound to: its node.id must be that
// node's name. A proxyless gRPC client acts for its pod: its node.id must be NAMESPACE/POD, which no node can be called, so
// that it neither reads what is meant for a node nor counts as one that has acknowledged it. It may ask for the types
// that gRPC knows, through which it sees the endpoints of Services, as every pod does through DNS, and nothing else.
type Authenticator struct {
	cfg      AuthenticatorConfig
	reviewer *reviewer
}

// NewAuthenticator returns an authenticator. The error is about the configuration.
func NewAuthenticator(cfg AuthenticatorConfig) (*Authenticator, error) {
	if cfg.AgentAudience == "" || cfg.AgentAccount.Namespace == "" || cfg.AgentAccount.Name == "" {
		return nil, errors.New("identity: agents need an audience and a service account with its namespace")
	}
	audiences := []string{cfg.AgentAudience}
	if cfg.GRPCAudience == cfg.AgentAudience {
		return nil, fmt.Errorf("identity: agents and gRPC clients share the audience %q: any pod could ask for an agent's token", cfg.AgentAudience)
	}
	if cfg.GRPCAudience != "" {
		audiences = append(audiences, cfg.GRPCAudience)
	}
	r, err := newReviewer(cfg.Client.AuthenticationV1().TokenReviews(), newKeys(publishedKeys(cfg.Client), cfg.Log), audiences)
	if err != nil {
		return nil, err
	}
	return &Authenticator{cfg, r}, nil
}

// Client is who sends an RPC.
type Client struct {
	// Name is what the client's token is bound to: a node, a pod, or at least a service account. It is empty without a token.
	Name    string
	Agent   bool      // It acts for a node; a proxyless gRPC client for a pod.
	Expires time.Time // When its token does. The zero time means that nothing does.
}

// Authenticate decides whether the sender of an RPC may be a client. Errors are gRPC statuses, and say what is missing.
func (a *Authenticator) Authenticate(ctx context.Context) (Client, error) {
	who, err := a.account(ctx)
	if err != nil {
		return Client{}, err
	}
	k, err := a.kind(who)
	if err != nil {
		return Client{}, err
	}
	return Client{Name: who.boundTo(k), Agent: k == agentClient, Expires: who.expires}, nil
}

// Authorize decides whether the client that sent an RPC may be a node and ask for a type of resource; an empty type is that
// of the RPC. Errors are gRPC statuses, and say what is missing.
func (a *Authenticator) Authorize(ctx context.Context, node *corepb.Node, typeURL string) error {
	who, err := a.account(ctx)
	if err != nil {
		return err
	}
	k, err := a.kind(who)
	if err != nil {
		return err
	}
	if k == agentClient {
		return who.mayBeNode(node.GetId())
	}
	if err := who.mayBePod(node.GetId()); err != nil {
		return err
	}
	if typeURL != "" && !slices.Contains(grpcTypes, typeURL) {
		return denied("a gRPC client may not ask for %s, only for listeners, routes, clusters and their endpoints", typeURL)
	}
	return nil
}

// account returns the account of the token that came with an RPC.
func (a *Authenticator) account(ctx context.Context) (account, error) {
	token, err := bearerToken(ctx)
	switch {
	case errors.Is(err, errNoToken) && a.cfg.GRPCAnonymous:
		return account{anonymous: true}, nil
	case err != nil:
		return account{}, status.Error(codes.Unauthenticated, err.Error())
	}
	return a.reviewer.review(ctx, token)
}

// kind is what a client acts for.
type kind int

const (
	agentClient kind = iota // A node.
	grpcClient              // A pod.
)

// grpcTypes are the types that gRPC's own xDS clients ask for.
var grpcTypes = []string{gcpresource.ListenerType, gcpresource.RouteType, gcpresource.ClusterType, gcpresource.EndpointType}

// kind returns what the owner of a token may act for.
func (a *Authenticator) kind(who account) (kind, error) {
	if who.anonymous {
		return grpcClient, nil
	}
	if slices.Contains(who.audiences, a.cfg.AgentAudience) {
		if who.namespace != a.cfg.AgentAccount.Namespace || who.name != a.cfg.AgentAccount.Name {
			return 0, denied("the token is of service account %s/%s, and agents have %s", who.namespace, who.name, a.cfg.AgentAccount)
		}
		return agentClient, nil
	}
	if len(a.cfg.GRPCNamespaces) > 0 && !slices.Contains(a.cfg.GRPCNamespaces, who.namespace) {
		return 0, denied("gRPC clients of the namespace %s are not allowed, only those of %s", who.namespace, strings.Join(a.cfg.GRPCNamespaces, ", "))
	}
	return grpcClient, nil
}

// boundTo names what the token is bound to. A token that people asked the API server for may be bound to nothing.
func (who account) boundTo(k kind) string {
	switch {
	case who.anonymous:
		return ""
	case k == agentClient && who.node != "":
		return "node " + who.node
	case k == grpcClient && who.pod != "":
		return "pod " + who.namespace + "/" + who.pod
	}
	return "service account " + who.namespace + "/" + who.name
}

// mayBeNode reports whether the token is bound to the node.
func (who account) mayBeNode(id string) error {
	switch {
	case who.node == "":
		return denied("the token names no node: it must be a bound token of a pod (projected serviceAccountToken volume), from Kubernetes 1.30 or later")
	case id == "":
		return errNoID
	case id != who.node:
		return denied("node.id is %q, and the token is bound to node %q", id, who.node)
	}
	return nil
}

// mayBePod reports whether the token is bound to the pod, or at least of its namespace if it is bound to none: people try
// things with a token that they asked the API server for.
func (who account) mayBePod(id string) error {
	namespace, pod, ok := strings.Cut(id, "/")
	switch {
	case id == "":
		return errNoID
	case !ok || namespace == "" || pod == "":
		return denied("node.id is %q, and that of a gRPC client is NAMESPACE/POD", id)
	case who.anonymous:
		return nil
	case namespace != who.namespace:
		return denied("node.id is %q, and the token is of the namespace %s", id, who.namespace)
	case who.pod != "" && pod != who.pod:
		return denied("node.id is %q, and the token is bound to pod %s/%s", id, who.namespace, who.pod)
	}
	return nil
}

var errNoID = status.Error(codes.InvalidArgument, "node.id is empty: set it in the client's bootstrap")

func denied(format string, args ...any) error {
	return status.Errorf(codes.PermissionDenied, format, args...)
}
