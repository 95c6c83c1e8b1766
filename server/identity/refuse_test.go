package identity

import (
	"strings"
	"testing"
	"time"

	clusterservicepb "github.com/envoyproxy/go-control-plane/envoy/service/cluster/v3"
	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	endpointservicepb "github.com/envoyproxy/go-control-plane/envoy/service/endpoint/v3"
	listenerservicepb "github.com/envoyproxy/go-control-plane/envoy/service/listener/v3"
	routeservicepb "github.com/envoyproxy/go-control-plane/envoy/service/route/v3"
	gcpresource "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/apimachinery/pkg/types"

	"github.com/fairlead/fairlead/cache"
)

// rpcs returns every RPC of the services that a control plane offers, with the type to ask for in ADS.
func rpcs() (all []rpc) {
	for _, service := range []grpc.ServiceDesc{
		discoverypb.AggregatedDiscoveryService_ServiceDesc,
		clusterservicepb.ClusterDiscoveryService_ServiceDesc,
		endpointservicepb.EndpointDiscoveryService_ServiceDesc,
		listenerservicepb.ListenerDiscoveryService_ServiceDesc,
		routeservicepb.RouteDiscoveryService_ServiceDesc,
	} {
		for _, s := range service.Streams {
			all = append(all, rpc{"/" + service.ServiceName + "/" + s.StreamName, grpc.StreamDesc{ClientStreams: true, ServerStreams: true}})
		}
		for _, m := range service.Methods {
			all = append(all, rpc{"/" + service.ServiceName + "/" + m.MethodName, grpc.StreamDesc{}})
		}
	}
	return all
}

// refusals are the ways in which a client is not who it says, and what it is told.
func refusals(t *testing.T) []refusal {
	n1 := token(t, agentToken("n1"))
	pod := token(t, podToken("shop", "cart-0"))
	return []refusal{
		{"no token", "", "n1", codes.Unauthenticated, "no token"},
		{"another scheme", "Basic bjE6bjE=", "n1", codes.Unauthenticated, "must be Bearer TOKEN"},
		{"an empty token", "Bearer ", "n1", codes.Unauthenticated, "must be Bearer TOKEN"},
		{"no JSON Web Token", "Bearer let-me-in", "n1", codes.Unauthenticated, "no JSON Web Token"},
		{"a token of no text", "Bearer e30.e30." + strings.Repeat("x", maxToken), "n1", codes.Unauthenticated, "service-account tokens have less than 8192"},
		{"a token of somebody's own making", "Bearer " + sign(t, agentToken("n1"), forgedKey), "n1", codes.Unauthenticated, "the signature of the token is not of the API server's key"},
		{"a token of a key that nobody knows", "Bearer " + sign(t, agentToken("n1"), unknownKey), "n1", codes.Unauthenticated, "which the API server does not publish"},
		{"an expired token", "Bearer " + token(t, agentToken("n1").with(func(b *bound) { b.Expires = time.Now().Add(-time.Minute).Unix() })),
			"n1", codes.Unauthenticated, "the token expired at"},
		{"a token that never expires", "Bearer " + token(t, agentToken("n1").with(func(b *bound) { b.Expires = 0 })),
			"n1", codes.Unauthenticated, "the token never expires"},
		{"a token for the API server", "Bearer " + token(t, agentToken("n1").with(func(b *bound) { b.Audience = []string{"https://kubernetes.default.svc"} })),
			"n1", codes.Unauthenticated, "for the audience https://kubernetes.default.svc, not for fairlead-agent or fairlead-grpc"},
		{"another service account", "Bearer " + token(t, agentToken("n1").with(func(b *bound) { b.Subject = "system:serviceaccount:fairlead-system:default" })),
			"n1", codes.PermissionDenied, "service account fairlead-system/default, and agents have fairlead-system/fairlead-agent"},
		{"the same account elsewhere", "Bearer " + token(t, agentToken("n1").with(func(b *bound) { b.Subject = "system:serviceaccount:shop:fairlead-agent" })),
			"n1", codes.PermissionDenied, "service account shop/fairlead-agent, and agents have fairlead-system/fairlead-agent"},
		{"a person", "Bearer " + token(t, agentToken("n1").with(func(b *bound) { b.Subject = "oidc:serviceaccount:jane" })),
			"n1", codes.Unauthenticated, "no service account"},
		{"a token bound to no node", "Bearer " + token(t, agentToken("n1").with(func(b *bound) { b.Node = "" })),
			"n1", codes.PermissionDenied, "the token names no node: it must be a bound token of a pod (projected serviceAccountToken volume)"},
		{"another node's id", "Bearer " + n1, "n2", codes.PermissionDenied, `node.id is \"n2\", and the token is bound to node \"n1\"`},
		{"no id", "Bearer " + n1, "", codes.InvalidArgument, "node.id is empty"},
		{"a pod as a node", "Bearer " + pod, "n1", codes.PermissionDenied, `node.id is \"n1\", and that of a gRPC client is NAMESPACE/POD`},
		{"a pod as another pod", "Bearer " + pod, "shop/cart-1", codes.PermissionDenied, "the token is bound to pod shop/cart-0"},
		{"a pod as one elsewhere", "Bearer " + pod, "bank/cart-0", codes.PermissionDenied, "the token is of the namespace shop"},
		{"an agent as a pod", "Bearer " + n1, "fairlead-system/fairlead-agent-n1", codes.PermissionDenied, `the token is bound to node \"n1\"`},
	}
}

type refusal struct {
	name, authorization, node string
	code                      codes.Code
	reason                    string // As the log has it.
}

// Whoever is not who it says is refused, on every RPC, with the reason, which the log has too; meanwhile another is served.
func TestRefusals(t *testing.T) {
	api := newAPIServer(t)
	dir := folder(t)
	c := serve(t, fromFiles(t, dir, &logBuffer{}), api.authenticator(t, nil))
	ca := dir + "/" + caFile
	good := newAgent(t, dial(t, c.address, ca, token(t, agentToken("n1"))), "n1")
	good.take(t, 80)

	all := rpcs()
	if len(all) != 2+4*3 {
		t.Errorf("%d RPCs, want two of ADS and three of each of four types", len(all))
	}
	for i, r := range refusals(t) {
		t.Run(r.name, func(t *testing.T) {
			conn := dial(t, c.address, ca, "")
			for _, call := range all {
				err := call.call(conn, r.authorization, r.node, gcpresource.ClusterType)
				if got, want := status.Convert(err), strings.ReplaceAll(r.reason, `\"`, `"`); got.Code() != r.code || !strings.Contains(got.Message(), want) {
					t.Errorf("%s: %v, want %s: %s", call, err, r.code, want)
				}
			}
			eventually(t, "the reason is in the log", func() bool { return len(c.log.lines("refused", "127.0.0.1:", r.reason)) > 0 })
			c.publish(t, uint32(1000+i))
			good.take(t, uint32(1000+i))
		})
	}
}

// The same RPCs answer those who are who they say.
func TestAccepted(t *testing.T) {
	api := newAPIServer(t)
	dir := folder(t)
	c := serve(t, fromFiles(t, dir, &logBuffer{}), api.authenticator(t, nil))
	for _, who := range []struct{ token, node string }{
		{token(t, agentToken("n1")), "n1"},
		{token(t, podToken("shop", "cart-0")), "shop/cart-0"},
		{token(t, podToken("shop", "")), "shop/somebody-who-tries"},
	} {
		conn := dial(t, c.address, dir+"/"+caFile, who.token)
		for _, call := range rpcs() {
			if err := call.call(conn, "", who.node, gcpresource.ClusterType); err != nil {
				t.Errorf("%s of %s: %v", call, who.node, err)
			}
		}
	}
}

// A proxyless client may not read what is meant for agents, whichever RPC it hides the question in.
func TestAgentsTypes(t *testing.T) {
	api := newAPIServer(t)
	dir := folder(t)
	c := serve(t, fromFiles(t, dir, &logBuffer{}), api.authenticator(t, nil))
	conn := dial(t, c.address, dir+"/"+caFile, token(t, podToken("shop", "cart-0")))
	for _, call := range rpcs() {
		if !call.stream.ClientStreams {
			continue // Fetch goes by the RPC's type, whatever the request says.
		}
		for _, typeURL := range []string{cache.FrontendType, cache.NodeType, gcpresource.SecretType} {
			if err := call.call(conn, "", "shop/cart-0", typeURL); status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "may not ask for "+typeURL) {
				t.Errorf("%s of %s: %v", call, typeURL, err)
			}
		}
	}
}

// A later request is judged like the first one.
func TestLaterRequests(t *testing.T) {
	api := newAPIServer(t)
	dir := folder(t)
	authenticator := api.authenticator(t, nil)
	c := serve(t, fromFiles(t, dir, &logBuffer{}), authenticator)
	ca := dir + "/" + caFile

	t.Run("another node within a stream", func(t *testing.T) {
		a := newAgent(t, dial(t, c.address, ca, token(t, agentToken("n1"))), "n1")
		a.take(t, 80)
		a.send(t, &discoverypb.DeltaDiscoveryRequest{Node: node("n2"), TypeUrl: cache.NodeType})
		if _, err := a.ads.Recv(); status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), `node.id is "n2"`) {
			t.Errorf("the stream ends with %v", err)
		}
	})
	t.Run("an agent's types, later", func(t *testing.T) {
		a := open(t, dial(t, c.address, ca, token(t, podToken("shop", "cart-0"))))
		a.send(t, &discoverypb.DeltaDiscoveryRequest{Node: node("shop/cart-0"), TypeUrl: gcpresource.ClusterType})
		if _, err := a.ads.Recv(); err != nil {
			t.Fatal(err)
		}
		a.send(t, &discoverypb.DeltaDiscoveryRequest{TypeUrl: cache.FrontendType, ResourceNamesSubscribe: []string{"*"}})
		if _, err := a.ads.Recv(); status.Code(err) != codes.PermissionDenied {
			t.Errorf("the stream ends with %v", err)
		}
	})
	t.Run("a pod that is gone", func(t *testing.T) {
		a := newAgent(t, dial(t, c.address, ca, token(t, agentToken("n3"))), "n3")
		a.take(t, 80)
		api.set(func() { api.deleted["fairlead-system/fairlead-agent-n3"] = true })
		authenticator.reviewer.accepted.Purge() // As if the verdict were too old.
		a.send(t, &discoverypb.DeltaDiscoveryRequest{TypeUrl: cache.NodeType})
		if _, err := a.ads.Recv(); status.Code(err) != codes.Unauthenticated || !strings.Contains(err.Error(), "invalidated") {
			t.Errorf("the stream ends with %v", err)
		}
	})
}

// The audiences and namespaces of gRPC clients are somebody's choice.
func TestGRPCClients(t *testing.T) {
	api := newAPIServer(t)
	pod := token(t, podToken("shop", "cart-0"))
	for _, test := range []struct {
		name          string
		change        func(*AuthenticatorConfig)
		authorization string
		node, want    string // Empty: it is served.
	}{
		{"a namespace that is allowed", func(c *AuthenticatorConfig) { c.GRPCNamespaces = []string{"bank", "shop"} }, pod, "shop/cart-0", ""},
		{"a namespace that is not", func(c *AuthenticatorConfig) { c.GRPCNamespaces = []string{"bank"} }, pod, "shop/cart-0", "gRPC clients of the namespace shop are not allowed"},
		{"no gRPC clients at all", func(c *AuthenticatorConfig) { c.GRPCAudience = "" }, pod, "shop/cart-0", "not for fairlead-agent"},
		{"nobody in particular", func(c *AuthenticatorConfig) { c.GRPCAnonymous = true }, "", "shop/cart-0", ""},
		{"nobody as a node", func(c *AuthenticatorConfig) { c.GRPCAnonymous = true }, "", "n1", "that of a gRPC client is NAMESPACE/POD"},
		{"a bad token where none would do", func(c *AuthenticatorConfig) { c.GRPCAnonymous = true }, sign(t, podToken("shop", "cart-0"), forgedKey), "shop/cart-0", "the signature of the token is not"},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := folder(t)
			c := serve(t, fromFiles(t, dir, &logBuffer{}), api.authenticator(t, test.change))
			conn := dial(t, c.address, dir+"/"+caFile, test.authorization)
			for _, call := range rpcs() {
				err := call.call(conn, "", test.node, gcpresource.ClusterType)
				if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
					t.Errorf("%s: %v, want %q", call, err, test.want)
				}
			}
		})
	}
}

// An audience that any pod may ask for must not be an agent's.
func TestSharedAudience(t *testing.T) {
	_, err := NewAuthenticator(AuthenticatorConfig{
		AgentAudience: "fairlead", GRPCAudience: "fairlead", AgentAccount: types.NamespacedName{Namespace: "fairlead-system", Name: "fairlead-agent"},
	})
	if err == nil || !strings.Contains(err.Error(), `share the audience "fairlead"`) {
		t.Errorf("error %v", err)
	}
}
