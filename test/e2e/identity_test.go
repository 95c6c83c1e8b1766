package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fairlead/fairlead/cache"
	"github.com/fairlead/fairlead/server/identity"
	"github.com/fairlead/fairlead/server/lab"
)

// forged returns a token with another signature of the same length, which only the API server's published key can tell.
func forged(token string) string {
	signed := strings.LastIndex(token, ".") + 1
	return token[:signed] + strings.Repeat("A", len(token)-signed)
}

// TestIdentity: two more replicas of the control plane, which may do what the manifest says and no more, agree on a CA
// and ask the real API server about real tokens. Who can be which node is what the tokens' Pods say.
func TestIdentity(t *testing.T) {
	i := newIdentity(t)
	agent := i.pod("fairlead-system", "agent-n1", "n1", "fairlead-agent")
	other := i.pod("fairlead-system", "other-n1", "n1", "default")
	client := i.pod("default", "caller", "n2", "default")
	for _, test := range []struct {
		name, token, node, typeURL string
		want                       string // Empty: it is answered.
	}{
		{"an agent", i.token(agent, identity.DefaultAgentAudience), "n1", cache.NodeType, ""},
		{"an agent as another node", i.token(agent, identity.DefaultAgentAudience), "n2", cache.NodeType, `the token is bound to node "n1"`},
		{"an agent's token that no pod was given", i.tokenOf("fairlead-system", "fairlead-agent", identity.DefaultAgentAudience), "n1", cache.NodeType, "the token names no node"},
		{"another account", i.token(other, identity.DefaultAgentAudience), "n1", cache.NodeType, "service account fairlead-system/default"},
		{"a token for the API server", i.token(agent, ""), "n1", cache.NodeType, "not for fairlead-agent or fairlead-grpc"},
		{"an agent's token that somebody signed anew", forged(i.token(agent, identity.DefaultAgentAudience)), "n1", cache.NodeType, "the signature of the token is not of the API server's key"},
		{"an administrator", i.cluster.kube.Token, "n1", cache.NodeType, "no JSON Web Token"},
		{"a gRPC program", i.token(client, identity.DefaultGRPCAudience), "default/caller", "type.googleapis.com/envoy.config.cluster.v3.Cluster", ""},
		{"a gRPC program as another", i.token(client, identity.DefaultGRPCAudience), "default/other", cache.NodeType, "bound to pod default/caller"},
		{"a gRPC program that asks for a node", i.token(client, identity.DefaultGRPCAudience), "default/caller", cache.NodeType, "may not ask for"},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, replica := range i.replicas {
				err := i.ask(replica, test.token, test.node, test.typeURL)
				if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
					t.Errorf("%s: %v, want %q", replica, err, test.want)
				}
			}
		})
	}

	dead := i.token(other, identity.DefaultGRPCAudience)
	i.delete(other)
	err := i.ask(i.replicas[0], dead, "fairlead-system/other-n1", "type.googleapis.com/envoy.config.cluster.v3.Cluster")
	if err == nil || !strings.Contains(err.Error(), "the API server does not accept the token") {
		t.Errorf("the token of a pod that is gone: %v", err)
	}
}

// identityCase is control planes with identity, and what their clients need.
type identityCase struct {
	t        *testing.T
	cluster  *cluster
	replicas []netip.AddrPort
	ca       string // File.
}

func newIdentity(t *testing.T) *identityCase {
	t.Helper()
	i := &identityCase{t: t, cluster: theCluster, ca: filepath.Join(t.TempDir(), "ca.crt")}
	manifest, err := os.ReadFile(filepath.Join("testdata", "identity.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := i.cluster.kube.kubectl(string(manifest), "apply", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := i.cluster.kube.kubectl(string(manifest), "delete", "--wait=false", "-f", "-"); err != nil {
			t.Error(err)
		}
	})
	for port := uint16(18100); port < 18102; port++ {
		i.start(netip.AddrPortFrom(i.cluster.kube.host.IPv4, port))
	}
	i.awaitCA()
	return i
}

// start starts a control plane.
func (i *identityCase) start(address netip.AddrPort) {
	i.t.Helper()
	name := fmt.Sprintf("serve-%d", address.Port())
	p, err := i.cluster.kube.host.Run(name, i.cluster.log(name), exec.Command(i.cluster.binary("fairlead"), "serve",
		"--kubeconfig", filepath.Join(i.cluster.dir, "fairlead.kubeconfig"),
		"--listen", address.String(), "--admin", fmt.Sprintf("127.0.0.1:%d", address.Port()+100)))
	if err != nil {
		i.t.Fatal(err)
	}
	i.t.Cleanup(func() { i.stop(p) })
	i.replicas = append(i.replicas, address)
}

// stop stops a control plane, which it should still be.
func (i *identityCase) stop(p *lab.Process) {
	if err := p.Ended(); err != nil {
		i.t.Error(err)
	}
	p.Kill()
}

// awaitCA waits until clients are told what to trust, and writes that down for them.
func (i *identityCase) awaitCA() {
	i.t.Helper()
	err := eventually(i.t.Context(), func() error {
		m, err := i.cluster.kube.Client.CoreV1().ConfigMaps("fairlead-system").Get(i.t.Context(), "fairlead-ca", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if n := strings.Count(m.Data["ca.crt"], "BEGIN CERTIFICATE"); n != 1 {
			return fmt.Errorf("%d CAs in the ConfigMap", n)
		}
		return os.WriteFile(i.ca, []byte(m.Data["ca.crt"]), 0o600)
	})
	if err != nil {
		i.t.Fatal(err)
	}
}

// pod creates a Pod.
func (i *identityCase) pod(namespace, name, node, account string) *corev1.Pod {
	i.t.Helper()
	pods := i.cluster.kube.Client.CoreV1().Pods(namespace)
	created, err := pods.Create(i.t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       corev1.PodSpec{NodeName: node, ServiceAccountName: account, Containers: []corev1.Container{{Name: "client", Image: imageClient}}},
	}, metav1.CreateOptions{})
	if err != nil {
		i.t.Fatal(err)
	}
	i.t.Cleanup(func() { pods.Delete(context.WithoutCancel(i.t.Context()), name, metav1.DeleteOptions{}) }) // One case does so itself.
	return created
}

// delete deletes a Pod and waits until it is gone.
func (i *identityCase) delete(pod *corev1.Pod) {
	i.t.Helper()
	pods := i.cluster.kube.Client.CoreV1().Pods(pod.Namespace)
	if err := pods.Delete(i.t.Context(), pod.Name, metav1.DeleteOptions{}); err != nil {
		i.t.Fatal(err)
	}
	err := eventually(i.t.Context(), func() error {
		_, err := pods.Get(i.t.Context(), pod.Name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return errors.Join(err, fmt.Errorf("pod %s is still there", pod.Name))
	})
	if err != nil {
		i.t.Fatal(err)
	}
}

// token returns a token as the kubelet asks for it for a Pod; the audience may be empty for the API server's.
func (i *identityCase) token(pod *corev1.Pod, audience string) string {
	i.t.Helper()
	return i.request(pod.Namespace, pod.Spec.ServiceAccountName, audience,
		&authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: pod.Name, UID: pod.UID})
}

// tokenOf returns a token that is bound to nothing.
func (i *identityCase) tokenOf(namespace, account, audience string) string {
	i.t.Helper()
	return i.request(namespace, account, audience, nil)
}

func (i *identityCase) request(namespace, account, audience string, bound *authenticationv1.BoundObjectReference) string {
	i.t.Helper()
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{BoundObjectRef: bound}}
	if audience != "" {
		request.Spec.Audiences = []string{audience}
	}
	var token string
	err := eventually(i.t.Context(), func() error { // A controller makes the account "default" of a new namespace.
		answer, err := i.cluster.kube.Client.CoreV1().ServiceAccounts(namespace).CreateToken(i.t.Context(), account, request, metav1.CreateOptions{})
		if err == nil {
			token = answer.Status.Token
		}
		return err
	})
	if err != nil {
		i.t.Fatal(err)
	}
	return token
}

// ask asks a replica, over TLS, for all of a type. It returns what the stream ends with, or nil if it is answered.
func (i *identityCase) ask(replica netip.AddrPort, token, node, typeURL string) error {
	file := filepath.Join(i.t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(token), 0o600); err != nil {
		return err
	}
	options, err := identity.ClientConfig{CAFile: i.ca, ServerName: identity.DefaultServerName, TokenFile: file}.DialOptions()
	if err != nil {
		return err
	}
	conn, err := grpc.NewClient("passthrough:///"+replica.String(), append(options,
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			return i.cluster.clients[0].host.DialContext(ctx, "tcp", address)
		}))...)
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(i.t.Context(), patience)
	defer cancel()
	stream, err := discoverypb.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx, grpc.WaitForReady(true))
	if err != nil {
		return err
	}
	request := &discoverypb.DeltaDiscoveryRequest{Node: &corepb.Node{Id: node}, TypeUrl: typeURL, ResourceNamesSubscribe: []string{"*"}}
	if err := stream.Send(request); err != nil && !errors.Is(err, io.EOF) { // Recv says why the stream has ended.
		return err
	}
	_, err = stream.Recv()
	return err
}
