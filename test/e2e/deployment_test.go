package e2e

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fairlead/fairlead/server/lab"
)

// service is a Deployment of echo Pods in namespace default, or one such Pod, and the Service that kubectl exposed it
// with. All have the same name.
type service struct {
	t        *testing.T
	cluster  *cluster
	name     string
	behind   string     // What kubectl exposes: deployment or pod.
	address  netip.Addr // The IPv4 ClusterIP.
	nodePort uint16     // 0 unless it was exposed with one.
}

// deploy creates the Deployment and exposes it on port 80, with further flags for kubectl expose.
func deploy(t *testing.T, name string, replicas int, flags ...string) *service {
	t.Helper()
	s := &service{t: t, cluster: theCluster, name: name, behind: "deployment"}
	s.kubectl("create", "deployment", name, "--image", imageEcho, "--port", "8080", "--replicas", fmt.Sprint(replicas))
	t.Cleanup(func() { s.kubectl("delete", "deployment,service", name, "--wait=false") })
	s.awaitPods(replicas)
	s.expose(flags...)
	return s
}

// deployOn runs one Pod on a node and exposes it on port 80.
func deployOn(t *testing.T, name string, n *lab.Node) (*service, *pod) {
	t.Helper()
	s := &service{t: t, cluster: theCluster, name: name, behind: "pod"}
	s.kubectl("run", name, "--image", imageEcho, "--port", "8080", "--overrides", fmt.Sprintf(`{"spec": {"nodeName": %q}}`, n.Name))
	t.Cleanup(func() { s.kubectl("delete", "pod,service", name, "--wait=false") })
	var p *pod
	s.eventually(func() error {
		if p = s.cluster.kubelets.pod("default/" + name); p == nil {
			return fmt.Errorf("pod %s does not run", name)
		}
		return nil
	})
	s.expose()
	return s, p
}

// expose makes the Service and waits until a Pod answers through it.
func (s *service) expose(flags ...string) {
	s.t.Helper()
	s.kubectl(append([]string{"expose", s.behind, s.name, "--port", "80", "--target-port", "8080"}, flags...)...)
	object, err := s.cluster.kube.Client.CoreV1().Services("default").Get(s.t.Context(), s.name, metav1.GetOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
	s.address, s.nodePort = netip.MustParseAddr(object.Spec.ClusterIP), uint16(object.Spec.Ports[0].NodePort)
	for _, client := range s.cluster.clients {
		s.eventually(func() error {
			_, err := ask(s.t.Context(), client.host, s.clusterIP())
			return err
		})
	}
}

// clusterIP is where the Service is reached from inside.
func (s *service) clusterIP() netip.AddrPort { return netip.AddrPortFrom(s.address, 80) }

// nodePortOf is where it is reached by its NodePort on a node.
func (s *service) nodePortOf(n *lab.Node) netip.AddrPort {
	return netip.AddrPortFrom(n.IPv4, s.nodePort)
}

// kubectl runs kubectl in namespace default, which must succeed.
func (s *service) kubectl(args ...string) string {
	s.t.Helper()
	out, err := s.cluster.kube.kubectl("", args...)
	if err != nil {
		s.t.Fatal(err)
	}
	return out
}

// scale sets the number of Pods and waits until exactly so many run.
func (s *service) scale(replicas int) []*pod {
	s.t.Helper()
	s.kubectl("scale", "deployment", s.name, "--replicas", fmt.Sprint(replicas))
	return s.awaitPods(replicas)
}

// awaitPods waits until exactly so many Pods of the Deployment run, and none is ending.
func (s *service) awaitPods(replicas int) []*pod {
	s.t.Helper()
	var pods []*pod
	s.eventually(func() error {
		pods = nil
		list, err := s.cluster.kube.Client.CoreV1().Pods("default").List(s.t.Context(), metav1.ListOptions{LabelSelector: "app=" + s.name})
		if err != nil {
			return err
		}
		if len(list.Items) != replicas {
			return fmt.Errorf("%d pods of %s, want %d", len(list.Items), s.name, replicas)
		}
		for _, item := range list.Items {
			p := s.cluster.kubelets.pod("default/" + item.Name)
			if p == nil || p.terminating.Load() || item.Status.PodIP == "" {
				return fmt.Errorf("pod %s does not run", item.Name)
			}
			pods = append(pods, p)
		}
		return nil
	})
	return pods
}

// answers asks until each of the Pods has answered, and returns their answers by Pod.
func (s *service) answers(from *lab.Host, to netip.AddrPort, pods []*pod) map[string]lab.Answer {
	s.t.Helper()
	want := names(pods)
	got := map[string]lab.Answer{}
	s.eventually(func() error {
		a, err := ask(s.t.Context(), from, to)
		if err != nil {
			return err
		}
		if !slices.Contains(want, a.Server) {
			return fmt.Errorf("%s asked %s: %s answered, want one of %q", from.Name, to, a.Server, want)
		}
		got[a.Server] = a
		if len(got) < len(want) {
			return fmt.Errorf("%s asked %s: only %d of %d pods have answered", from.Name, to, len(got), len(want))
		}
		return nil
	})
	return got
}

func (s *service) eventually(condition func() error) {
	s.t.Helper()
	if err := eventually(s.t.Context(), condition); err != nil {
		s.t.Fatalf("%v; logs are in %s", err, s.cluster.dir)
	}
}

// names returns the Pods' names, sorted.
func names(pods []*pod) []string {
	var names []string
	for _, p := range pods {
		names = append(names, p.name)
	}
	slices.Sort(names)
	return names
}

// in is s for a subtest.
func (s *service) in(t *testing.T) *service {
	sub := *s
	sub.t = t
	return &sub
}
