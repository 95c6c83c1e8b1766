package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fairlead/fairlead/server/lab"
)

// TestReach reaches a Service as kubectl expose makes it from everywhere that a Service can be reached from, and looks
// at the source address that its Pods see.
func TestReach(t *testing.T) {
	s := deploy(t, "reach", 4, "--type=NodePort")
	pods := s.awaitPods(4)
	for _, client := range s.cluster.clients {
		t.Run("from a pod on "+client.node.Name, func(t *testing.T) {
			for pod, a := range s.in(t).answers(client.host, s.clusterIP(), pods) {
				if a.Client.Addr() != client.host.IPv4 {
					t.Errorf("%s saw %s, want the client's own address %s", pod, a.Client, client.host.IPv4)
				}
			}
		})
	}
	for _, n := range s.cluster.nodes {
		t.Run("from host "+n.Name, func(t *testing.T) { s.in(t).answers(n.Host, s.clusterIP(), pods) })
		t.Run("from outside by a node port of "+n.Name, func(t *testing.T) {
			s.in(t).answers(s.cluster.outside, s.nodePortOf(n), pods)
		})
	}
	t.Run("from the pod itself", func(t *testing.T) {
		// Among four Pods the one that asks is one that answers.
		s.in(t).answers(pods[0].host, s.clusterIP(), pods)
	})
	t.Run("from the only pod itself", func(t *testing.T) {
		only := s.in(t).scale(1)
		s.in(t).answers(only[0].host, s.clusterIP(), only)
	})
	t.Run("without pods it is refused", func(t *testing.T) { s.in(t).refuses() })
}

// refuses scales to nothing and waits until connections are refused at once.
func (s *service) refuses() {
	s.t.Helper()
	s.scale(0)
	for _, from := range []*lab.Host{s.cluster.clients[0].host, s.cluster.nodes[0].Host} {
		s.eventually(func() error {
			switch _, err := ask(s.t.Context(), from, s.clusterIP()); {
			case err == nil:
				return fmt.Errorf("%s is answered at %s, want it refused", from.Name, s.clusterIP())
			case !refused(err):
				return fmt.Errorf("%s asked %s, want it refused: %w", from.Name, s.clusterIP(), err)
			default:
				return nil
			}
		})
	}
}

// TestDualStack reaches a Service of both families by both its addresses.
func TestDualStack(t *testing.T) {
	s := deploy(t, "dual", 2)
	s.kubectl("patch", "service", s.name, "--patch", `{"spec": {"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv4", "IPv6"]}}`)
	object, err := s.cluster.kube.Client.CoreV1().Services("default").Get(t.Context(), s.name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(object.Spec.ClusterIPs) != 2 {
		t.Fatalf("ClusterIPs are %q, want one of each family", object.Spec.ClusterIPs)
	}
	pods := s.awaitPods(2)
	for _, ip := range object.Spec.ClusterIPs {
		address := netip.MustParseAddr(ip)
		for _, client := range s.cluster.clients {
			for pod, a := range s.answers(client.host, netip.AddrPortFrom(address, 80), pods) {
				want := client.host.IPv4
				if address.Is6() {
					want = client.host.IPv6
				}
				if a.Client.Addr() != want {
					t.Errorf("%s saw %s, want the client's own address %s", pod, a.Client, want)
				}
			}
		}
	}
}

// TestRecreate deletes a Service and makes it again: the new address leads to its Pods, and the old one nowhere.
func TestRecreate(t *testing.T) {
	s := deploy(t, "recreate", 2)
	old := s.clusterIP()
	s.kubectl("delete", "service", s.name)
	for _, client := range s.cluster.clients {
		s.eventually(func() error {
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancel()
			if a, err := ask(ctx, client.host, old); err == nil {
				return fmt.Errorf("%s asked %s of the deleted service: %s answered", client.name, old, a.Server)
			}
			return nil
		})
	}
	s.expose()
	if s.clusterIP() == old {
		t.Fatalf("the new service got the old address %s", old)
	}
	for _, client := range s.cluster.clients {
		s.answers(client.host, s.clusterIP(), s.awaitPods(2))
	}
}

// table is what fairlead translate prints, as far as it matters here.
type table struct {
	Frontends []struct {
		Address, Service string
		Port             uint16
		Routes           map[string]struct {
			Verdict   string
			Endpoints []string
		}
	}
}

// TestEndpointsAgree compares what kubectl shows of a Service's endpoints with what fairlead translate makes of the
// same objects, and with the Pods that answer.
func TestEndpointsAgree(t *testing.T) {
	s := deploy(t, "agree", 3)
	pods := s.awaitPods(3)
	var want []string
	for _, p := range pods {
		want = append(want, netip.AddrPortFrom(p.host.IPv4, 8080).String())
	}
	slices.Sort(want)
	s.eventually(func() error {
		for source, got := range map[string][]string{
			"endpoints":          s.endpoints(),
			"endpointslices":     s.endpointSlices(),
			"fairlead translate": s.translated("n1"),
		} {
			if !slices.Equal(got, want) {
				return fmt.Errorf("%s: %q, want %q", source, got, want)
			}
		}
		return nil
	})
	for _, client := range s.cluster.clients {
		s.answers(client.host, s.clusterIP(), pods)
	}
}

// endpoints reads what kubectl get endpoints shows. It shows three at most.
func (s *service) endpoints() []string {
	columns := strings.Fields(s.kubectl("get", "endpoints", s.name, "--no-headers"))
	found := strings.Split(columns[1], ",")
	slices.Sort(found)
	return found
}

// endpointSlices reads what kubectl get endpointslices shows of the Service's only slice.
func (s *service) endpointSlices() []string {
	columns := strings.Fields(s.kubectl("get", "endpointslices", "-l", "kubernetes.io/service-name="+s.name, "--no-headers"))
	var found []string
	for _, address := range strings.Split(columns[3], ",") {
		found = append(found, address+":"+columns[2])
	}
	slices.Sort(found)
	return found
}

// translated pipes what kubectl prints into fairlead translate and reads the Service's endpoints for a node's pods.
func (s *service) translated(node string) []string {
	cmd := exec.Command(s.cluster.binary("fairlead"), "translate", "-f", "-", "--node", node, "-o", "json")
	cmd.Stdin = strings.NewReader(s.kubectl("get", "services,endpointslices,nodes", "-A", "-o", "yaml"))
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		s.t.Fatalf("fairlead translate: %v: %s", err, &stderr)
	}
	var found table
	if err := json.Unmarshal(out, &found); err != nil {
		s.t.Fatalf("fairlead translate: %v in %s", err, out)
	}
	for _, f := range found.Frontends {
		if f.Address == s.address.String() && f.Port == 80 {
			return f.Routes["pod"].Endpoints
		}
	}
	return nil
}
