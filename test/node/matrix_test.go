package node

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/fairlead/fairlead/server/lab"
)

// place is where a client is: a pod, a node, or a host outside that reaches the cluster through that node. The nodes of a
// pair are a and b; the pods that serve are on both.
type place int

const (
	podA     place = iota // A pod that only asks.
	podB                  //
	serverA               // A pod that also serves.
	nodeA                 // A process in the node's own network, as a hostNetwork pod is.
	nodeB                 //
	outsideA              // A host that takes a for its way to the cluster.
	outsideB
)

func (p place) String() string {
	return [...]string{"pod a", "pod b", "server a", "node a", "node b", "outside by a", "outside by b"}[p]
}

// client returns the host, and the node by which it enters.
func (p place) client(in *pair) (*lab.Host, int) {
	switch p {
	case podA:
		return in.clients[0], 0
	case podB:
		return in.clients[1], 1
	case serverA:
		return in.servers[0], 0
	case nodeA:
		return in.nodes[0].Host, 0
	case nodeB:
		return in.nodes[1].Host, 1
	case outsideA:
		return in.outside[0], 0
	default:
		return in.outside[1], 1
	}
}

// source is what an endpoint sees.
type source int

const (
	own    source = iota // The client's own address.
	aNode                // One of the addresses of a; which is not promised.
	bNode                //
	itself               // The client's own, but a's where the client is itself the endpoint.
)

// outcome is what happens to a connection.
type outcome struct {
	by     string // Which endpoints answer, each at least once: a, b or ab. Else "refused" or "dropped".
	source source
}

var refused, dropped = outcome{by: "refused"}, outcome{by: "dropped"}

// The rows of the matrix. A NodePort is dialled at the node that the client enters by, unless the row says at b.
var matrix = []struct {
	service string
	from    place
	kinds   []kind
	atB     bool
	want    outcome
}{
	// Both policies Cluster, endpoints on a and b: all answer. Pods keep their address at the ClusterIP; at the other
	// kinds everyone is masqueraded, pods too.
	{"cluster", podA, []kind{clusterIP}, false, outcome{"ab", own}},
	{"cluster", serverA, []kind{clusterIP}, false, outcome{"ab", itself}},
	{"cluster", nodeA, []kind{clusterIP}, false, outcome{"ab", aNode}},
	{"cluster", outsideA, []kind{clusterIP}, false, outcome{"ab", aNode}},
	{"cluster", podA, external, false, outcome{"ab", aNode}},
	{"cluster", serverA, external, false, outcome{"ab", aNode}},
	{"cluster", nodeA, external, false, outcome{"ab", aNode}},
	{"cluster", outsideA, external, false, outcome{"ab", aNode}},
	{"cluster", podA, []kind{nodePort}, true, outcome{"ab", bNode}},
	{"cluster", nodeA, []kind{nodePort}, true, outcome{"ab", bNode}},

	// Both policies Local, endpoint on a. Inside, only a forwards. From outside, a forwards with the client's address and b
	// drops. Pods and nodes at the external kinds are subject to neither policy.
	{"local", podA, []kind{clusterIP}, false, outcome{"a", own}},
	{"local", podB, []kind{clusterIP}, false, dropped},
	{"local", nodeA, []kind{clusterIP}, false, outcome{"a", aNode}},
	{"local", nodeB, []kind{clusterIP}, false, dropped},
	{"local", outsideA, []kind{clusterIP}, false, outcome{"a", aNode}},
	{"local", outsideB, []kind{clusterIP}, false, dropped},
	{"local", outsideA, external, false, outcome{"a", own}},
	{"local", outsideB, external, false, dropped},
	{"local", podA, external, false, outcome{"a", own}},
	{"local", podB, external, false, outcome{"a", own}},
	{"local", nodeA, external, false, outcome{"a", aNode}},
	{"local", nodeB, external, false, outcome{"a", bNode}},
	{"local", nodeA, []kind{nodePort}, true, dropped},

	// Only externalTrafficPolicy Local, endpoints on both: from outside, each node's own; from inside, all.
	{"external-local", outsideA, external, false, outcome{"a", own}},
	{"external-local", outsideB, external, false, outcome{"b", own}},
	{"external-local", podA, external, false, outcome{"ab", own}},
	{"external-local", nodeA, external, false, outcome{"ab", aNode}},
	{"external-local", podA, []kind{clusterIP}, false, outcome{"ab", own}},
	{"external-local", outsideA, []kind{clusterIP}, false, outcome{"ab", aNode}},

	// Only internalTrafficPolicy Local, endpoint on a.
	{"internal-local", podA, []kind{clusterIP}, false, outcome{"a", own}},
	{"internal-local", podB, []kind{clusterIP}, false, dropped},
	{"internal-local", podB, external, false, outcome{"a", bNode}},
	{"internal-local", outsideB, external, false, outcome{"a", bNode}},

	// Endpoints in the nodes' own network.
	{"host", podA, []kind{clusterIP}, false, outcome{"ab", own}},
	{"host", nodeA, []kind{clusterIP}, false, outcome{"ab", aNode}},
	{"host", outsideA, []kind{clusterIP}, false, outcome{"ab", aNode}},
	{"host", podA, external, false, outcome{"ab", aNode}},
	{"host", nodeA, external, false, outcome{"ab", aNode}},
	{"host", outsideA, external, false, outcome{"ab", aNode}},
	{"host-local", podB, []kind{clusterIP}, false, outcome{"a", own}},
	{"host-local", nodeA, external, false, outcome{"a", aNode}},
	{"host-local", outsideA, external, false, outcome{"a", own}},
	{"host-local", outsideB, external, false, dropped},

	// No endpoint anywhere: refused, whatever the policy.
	{"none", podA, everything, false, refused},
	{"none", nodeA, everything, false, refused},
	{"none", outsideA, everything, false, refused},

	// Endpoints that are not ready do not answer; when none is ready, those that still serve while they terminate do.
	{"one-ready", podA, []kind{clusterIP}, false, outcome{"b", own}},
	{"one-ready", outsideA, external, false, outcome{"b", aNode}},
	{"terminating", podA, []kind{clusterIP}, false, outcome{"ab", own}},
	{"terminating", outsideA, external, false, outcome{"ab", aNode}},
	{"unready", podA, everything, false, refused},

	// Source ranges that hold a, a's clients and nothing of b: they bind the load balancer's address alone.
	{"ranged", podA, []kind{loadBalancer}, false, outcome{"ab", aNode}},
	{"ranged", nodeA, []kind{loadBalancer}, false, outcome{"ab", aNode}},
	{"ranged", outsideA, []kind{loadBalancer}, false, outcome{"ab", aNode}},
	{"ranged", podB, []kind{loadBalancer}, false, dropped},
	{"ranged", nodeB, []kind{loadBalancer}, false, dropped},
	{"ranged", outsideB, []kind{loadBalancer}, false, dropped},
	{"ranged", podB, []kind{clusterIP}, false, outcome{"ab", own}},
	{"ranged", podB, []kind{nodePort, externalIP}, false, outcome{"ab", bNode}},
	{"ranged", outsideB, []kind{nodePort, externalIP}, false, outcome{"ab", bNode}},
}

var (
	external   = []kind{nodePort, loadBalancer, externalIP}
	everything = []kind{clusterIP, nodePort, loadBalancer, externalIP}
)

// services returns those of the matrix for a pair of nodes and a protocol, numbered from first.
func (p *pair) services(protocol corev1.Protocol, direct bool, first int) map[string]*service {
	const (
		localInternal = corev1.ServiceInternalTrafficPolicyLocal
		localExternal = corev1.ServiceExternalTrafficPolicyLocal
	)
	pod := func(i int) endpoint { return endpoint{host: p.servers[i], node: p.nodes[i]} }
	host := func(i int) endpoint { return endpoint{host: p.nodes[i].Host, node: p.nodes[i], hostNetwork: true} }
	with := func(e endpoint, ready, serving, terminating bool) endpoint {
		e.conditions = discoveryv1.EndpointConditions{Ready: &ready, Serving: &serving, Terminating: &terminating}
		return e
	}
	all := []*service{
		{name: "cluster", endpoints: []endpoint{pod(0), pod(1)}},
		{name: "local", internal: localInternal, external: localExternal, endpoints: []endpoint{pod(0)}},
		{name: "external-local", external: localExternal, endpoints: []endpoint{pod(0), pod(1)}},
		{name: "internal-local", internal: localInternal, endpoints: []endpoint{pod(0)}},
		{name: "host", endpoints: []endpoint{host(0), host(1)}},
		{name: "host-local", external: localExternal, endpoints: []endpoint{host(0)}},
		{name: "none", internal: localInternal, external: localExternal},
		{name: "one-ready", endpoints: []endpoint{with(pod(0), false, true, true), with(pod(1), true, true, false)}},
		{name: "terminating", endpoints: []endpoint{with(pod(0), false, true, true), with(pod(1), false, true, true)}},
		{name: "unready", endpoints: []endpoint{with(pod(0), false, false, false), with(pod(1), false, false, true)}},
		{name: "ranged", endpoints: []endpoint{pod(0), pod(1)}, ranges: p.rangesOfA()},
	}
	named := map[string]*service{}
	for i, s := range all {
		named[s.name] = s
		s.name = fmt.Sprintf("%s-%s-%s", s.name, p, strings.ToLower(string(protocol)))
		s.number, s.protocol, s.direct = first+i, protocol, direct
		if direct {
			s.name += "-direct"
		}
	}
	return named
}

// rangesOfA returns source ranges that hold a and its clients, each in one of its own.
func (p *pair) rangesOfA() []string {
	var all []string
	for _, h := range []*lab.Host{p.clients[0], p.outside[0], p.nodes[0].Host} {
		all = append(all, h.IPv4.String()+"/32", h.IPv6.String()+"/128")
	}
	return all
}

// TestMatrix sends packets along every path to a Service and looks at who answers, and whom they see.
func TestMatrix(t *testing.T) {
	c := theCluster
	var all []*service
	byPath := map[string]map[string]*service{}
	protocols := []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP}
	ways := map[string]bool{"by Envoy": false, "direct": true}
	for i, p := range c.pairs {
		for j, protocol := range protocols {
			for way, direct := range ways {
				first := 100*i + 50*j
				if direct {
					first += 25
				}
				named := p.services(protocol, direct, first)
				byPath[p.String()+string(protocol)+way] = named
				all = slices.AppendSeq(all, maps.Values(named))
			}
		}
	}
	slices.SortFunc(all, func(a, b *service) int { return a.number - b.number })
	c.apply(t, all...)
	for _, p := range c.pairs {
		for _, protocol := range protocols {
			for _, family := range families {
				for way := range ways {
					t.Run(fmt.Sprintf("%s %s %s %s", p, protocol, family, way), func(t *testing.T) {
						t.Parallel()
						p.walk(t, byPath[p.String()+string(protocol)+way], family)
					})
				}
			}
		}
	}
}

// walk takes every path of the matrix to a pair's Services.
func (p *pair) walk(t *testing.T, named map[string]*service, family corev1.IPFamily) {
	for _, row := range matrix {
		for _, k := range row.kinds {
			path := path{pair: p, service: named[row.service], from: row.from, kind: k, family: family, atB: row.atB}
			if err := path.expect(t.Context(), row.want); err != nil {
				t.Errorf("%s: %v", path, err)
			}
		}
	}
}

// path is one way to a Service.
type path struct {
	pair    *pair
	service *service
	from    place
	kind    kind
	family  corev1.IPFamily
	atB     bool
}

func (p path) String() string {
	s := fmt.Sprintf("%s of %s from %s", p.kind, p.service.name, p.from)
	if p.atB {
		s += " at node b"
	}
	return s
}

const (
	atOnce  = time.Second            // How long a refusal may take.
	silence = 400 * time.Millisecond // How long nothing at all must happen for a packet to count as dropped.

	// enough exchanges show who answers: an endpoint that should not is chosen in one of two, and one that should is
	// missing from all of them once in 10^9.
	enough = 30
)

// expect sends packets along the path and compares what becomes of them.
func (p path) expect(ctx context.Context, want outcome) error {
	client, entry := p.from.client(p.pair)
	at := p.pair.nodes[entry]
	if p.atB {
		at = p.pair.nodes[1]
	}
	r := lab.Request{Network: lab.TCP, To: p.service.target(p.kind, p.family, at), Size: 500}
	if p.service.protocol == corev1.ProtocolUDP {
		r.Network = lab.UDP
	}
	switch local := (p.from == nodeA || p.from == nodeB) && !p.atB; {
	case (want == refused || want == dropped) && local && r.Network == lab.UDP:
		// Whatever netfilter does with a datagram in the output hook, other than to let it pass, its sender hears at once.
		return expectFailure(ctx, client, r, atOnce, lab.Filtered)
	case want == refused:
		return expectFailure(ctx, client, r, atOnce, lab.Refused)
	case want == dropped:
		return expectFailure(ctx, client, r, silence, lab.TimedOut)
	}
	answered := map[string]bool{}
	for range enough {
		a, err := p.ask(ctx, client, r, want)
		if err != nil {
			return err
		}
		answered[a.Server] = true
		if len(answered) == len(want.by) && len(answered) > 1 {
			break
		}
	}
	if len(answered) != len(want.by) {
		return fmt.Errorf("answered by %v, want %s", answered, want.by)
	}
	return nil
}

func expectFailure(ctx context.Context, client *lab.Host, r lab.Request, within time.Duration, want lab.Failure) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	a, err := client.Ask(ctx, r)
	if got := lab.FailureOf(err); got != want {
		return fmt.Errorf("got answer %q, error %w, within %s; want: %s", a, err, within, want)
	}
	return nil
}

// ask makes one exchange and compares who answered and whom they saw.
func (p path) ask(ctx context.Context, client *lab.Host, r lab.Request, want outcome) (lab.Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	a, err := client.Ask(ctx, r)
	if err != nil {
		return a, err
	}
	var names []string
	for i, letter := range []string{"a", "b"} {
		if strings.Contains(want.by, letter) {
			names = append(names, p.pair.servers[i].Name, p.pair.nodes[i].Name)
		}
	}
	if !slices.Contains(names, a.Server) {
		return a, fmt.Errorf("answered by %s, want one of %s", a.Server, want.by)
	}
	if allowed := p.allowed(client, a.Server, want.source); !slices.Contains(allowed, a.Client.Addr()) {
		return a, fmt.Errorf("%s saw %s, want one of %v", a.Server, a.Client.Addr(), allowed)
	}
	return a, nil
}

// allowed returns the addresses that a server may see.
func (p path) allowed(client *lab.Host, server string, want source) []netip.Addr {
	switch {
	case want == aNode, want == itself && server == client.Name:
		return nodeAddresses(p.pair.nodes[0])
	case want == bNode:
		return nodeAddresses(p.pair.nodes[1])
	default:
		return []netip.Addr{client.IPv4, client.IPv6}
	}
}

// nodeAddresses returns the addresses that are a node's own: on the nodes' network, and on the bridge of its pods.
func nodeAddresses(n *lab.Node) []netip.Addr {
	return []netip.Addr{n.IPv4, n.IPv6, n.PodCIDR4.Addr().Next(), n.PodCIDR6.Addr().Next()}
}
