package realnode

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/fairlead/fairlead/server/lab"
)

// alike returns the host's address of the family that a has.
func alike(a netip.Addr, h *lab.Host) netip.Addr {
	if a.Is4() {
		return h.IPv4
	}
	return h.IPv6
}

// sees says whether a pod may see that source; an error is a reason why not.
type sees func(server corev1.Pod, source netip.Addr) error

// anything is for sources that nobody promises.
func anything(corev1.Pod, netip.Addr) error { return nil }

// is wants the source to be an address of the host's.
func is(h *lab.Host) sees {
	return func(_ corev1.Pod, source netip.Addr) error {
		held, err := h.Holds(source)
		if err == nil && !held {
			err = fmt.Errorf("want an address of %s", h.Name)
		}
		return err
	}
}

// asks checks that requests reach every pod, over TCP and UDP, none fails, and each pod sees who it should.
func (s service) asks(from *lab.Host, to func(lab.Network) netip.AddrPort, want sees) {
	s.t.Helper()
	for _, network := range []lab.Network{lab.HTTP, lab.UDP} {
		r := lab.Request{Network: network, To: to(network)}
		seen, err := s.untilAll(func(ctx context.Context) (lab.Answer, error) { return from.Ask(ctx, r) })
		if err != nil {
			s.t.Errorf("%s asks %s over %s: %v", from.Name, r.To, network, err)
		}
		for server, source := range seen {
			if err := want(s.pods[server], source); err != nil {
				s.t.Errorf("%s asks %s over %s: %s on %s sees %s: %v", from.Name, r.To, network, server, s.pods[server].Spec.NodeName, source, err)
			}
		}
	}
}

// mostAsked is more requests than it takes to reach every one of two pods, by any fair balancing.
const mostAsked = 100

// untilAll asks until every pod has answered, and returns the source that each saw. Once the first request has been answered
// none may fail.
func (s service) untilAll(ask func(context.Context) (lab.Answer, error)) (map[string]netip.Addr, error) {
	seen := map[string]netip.Addr{}
	once := func() error {
		ctx, cancel := context.WithTimeout(s.t.Context(), requestTimeout)
		defer cancel()
		a, err := ask(ctx)
		if err == nil {
			seen[a.Server] = a.Client.Addr()
		}
		return err
	}
	if err := eventually(s.t.Context(), once); err != nil {
		return nil, err
	}
	for range mostAsked {
		if len(seen) == len(s.pods) {
			return seen, nil
		}
		if err := once(); err != nil {
			return seen, err
		}
	}
	return seen, fmt.Errorf("%d requests were answered by %d of %d pods", mostAsked, len(seen), len(s.pods))
}

// clusterIP returns where the Service is for pods and nodes.
func clusterIP(a netip.Addr) func(lab.Network) netip.AddrPort {
	return func(lab.Network) netip.AddrPort { return netip.AddrPortFrom(a, 80) }
}

// through returns where the Service is by a node, in the family that a has.
func (s service) through(n *node, a netip.Addr) func(lab.Network) netip.AddrPort {
	return func(network lab.Network) netip.AddrPort {
		return netip.AddrPortFrom(alike(a, n.Host), s.nodePorts[network])
	}
}

// clientOf returns the node's client pod.
func (s service) clientOf(n *node) *lab.Host {
	s.t.Helper()
	client, err := n.client(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	return client
}

func (s service) fromPods() {
	for _, n := range s.cluster.nodes {
		client := s.clientOf(n)
		itself := func(server corev1.Pod, source netip.Addr) error {
			if s.cluster.network.hidesPods() && server.Spec.NodeName != n.Name {
				return is(n.Host)(server, source)
			}
			return is(client)(server, source)
		}
		for _, a := range s.addresses {
			s.asks(client, clusterIP(a), itself)
			for _, by := range s.cluster.nodes {
				s.asks(client, s.through(by, a), anything)
			}
		}
	}
}

func (s service) fromNodes() {
	for _, n := range s.cluster.nodes {
		for _, a := range s.addresses {
			s.asks(n.Host, clusterIP(a), is(n.Host))
			s.asks(n.Host, s.through(n, a), is(n.Host))
		}
	}
}

func (s service) fromOutside() {
	for _, by := range s.cluster.nodes {
		for _, a := range s.addresses {
			s.asks(s.cluster.outside, s.through(by, a), is(by.Host))
		}
	}
}

// hairpin has each pod ask until it answers itself.
func (s service) hairpin() {
	for _, p := range s.pods {
		for _, n := range s.cluster.nodes {
			if n.Name != p.Spec.NodeName {
				continue
			}
			itself, err := n.pod(&p)
			if err != nil {
				s.t.Fatal(err)
			}
			for _, a := range s.addresses {
				s.asks(itself, clusterIP(a), anything)
			}
		}
	}
}

// byName asks CoreDNS from pods on every node, by UDP, for addresses of each family, and dials what it says.
func (s service) byName() {
	for _, n := range s.cluster.nodes {
		client := s.clientOf(n)
		for _, family := range each(s.cluster.network.families, "ip4", "ip6") {
			err := eventually(s.t.Context(), func() error { return s.askByName(client, family) })
			if err != nil {
				s.t.Errorf("from a pod on node %s: %v", n.Name, err)
			}
		}
	}
}

// policy lets one client in, in a network that enforces policies: they see the clients themselves.
func (s service) policy() {
	if d := s.cluster.network.daemon; d == nil || !d.enforces {
		s.t.Skip("the network enforces no policies")
	}
	allowed, refused := s.clientOf(s.cluster.nodes[0]), s.clientOf(s.cluster.nodes[1])
	manifest := fmt.Sprintf(`
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: %[1]s}
spec:
  podSelector: {matchLabels: {app: %[2]s}}
  ingress: [{from: [{podSelector: {matchLabels: {app: %[3]s}}}]}]
`, s.name, strings.TrimSuffix(s.name, "-all"), allowed.Name)
	if err := s.cluster.kube.apply(s.t.Context(), manifest); err != nil {
		s.t.Fatal(err)
	}
	defer s.kubectl("delete", "networkpolicy", s.name)
	for _, a := range s.addresses {
		r := lab.Request{Network: lab.HTTP, To: netip.AddrPortFrom(a, 80)}
		err := eventually(s.t.Context(), func() error {
			if answer, err := s.askShortly(refused, r); err == nil {
				return fmt.Errorf("%s, which the policy does not let in, is answered by %s", refused.Name, answer)
			}
			return nil
		})
		if err != nil {
			s.t.Error(err)
		}
		s.asks(allowed, clusterIP(a), is(allowed))
		for range len(s.pods) * 2 {
			if answer, err := s.askShortly(refused, r); err == nil {
				s.t.Errorf("%s, which the policy does not let in, is answered by %s", refused.Name, answer)
			}
		}
	}
}

// askShortly waits for an answer no longer than one takes.
func (s service) askShortly(from *lab.Host, r lab.Request) (lab.Answer, error) {
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Second)
	defer cancel()
	return from.Ask(ctx, r)
}

// large sends much, and lets it come back: over TCP more than any window, over UDP datagrams below, about and above the MTU.
func (s service) large() {
	for _, n := range s.cluster.nodes {
		for _, from := range []*lab.Host{s.clientOf(n), n.Host} {
			for _, a := range s.addresses {
				s.largeFrom(from, clusterIP(a))
			}
		}
		for _, a := range s.addresses {
			s.largeFrom(s.cluster.outside, s.through(n, a))
		}
	}
}

func (s service) largeFrom(from *lab.Host, to func(lab.Network) netip.AddrPort) {
	s.t.Helper()
	const bytes = 3 << 20
	_, err := s.untilAll(func(ctx context.Context) (lab.Answer, error) { return echo(ctx, from, to(lab.HTTP), bytes) })
	if err != nil {
		s.t.Errorf("%s sends %d bytes to %s over TCP: %v", from.Name, bytes, to(lab.HTTP), err)
	}
	for _, size := range []int{1200, 1400, 1440, 1472, 8000} {
		r := lab.Request{Network: lab.UDP, To: to(lab.UDP), Size: size}
		if err := s.datagrams(from, r); err != nil {
			s.t.Errorf("%s sends %d bytes to %s over UDP: %v", from.Name, size, r.To, err)
		}
	}
}

// datagrams sends a few, of which one may be lost: who sends it learns by that how much the way holds.
func (s service) datagrams(from *lab.Host, r lab.Request) error {
	var lost []error
	for range 6 {
		ctx, cancel := context.WithTimeout(s.t.Context(), time.Second)
		_, err := from.Ask(ctx, r)
		cancel()
		if err != nil {
			lost = append(lost, err)
		}
	}
	if len(lost) > 1 {
		return fmt.Errorf("%d of 6 were not answered: %w", len(lost), lost[0])
	}
	return nil
}

// echo sends so many bytes by HTTP, and wants them back behind the answer.
func echo(ctx context.Context, from *lab.Host, to netip.AddrPort, size int) (lab.Answer, error) {
	client := http.Client{Transport: &http.Transport{DialContext: from.DialContext, DisableKeepAlives: true}}
	sent := bytes.Repeat([]byte("fairlead"), size/8)
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+to.String()+"/", bytes.NewReader(sent))
	if err != nil {
		return lab.Answer{}, err
	}
	response, err := client.Do(request)
	if err != nil {
		return lab.Answer{}, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return lab.Answer{}, err
	}
	line, back, _ := strings.Cut(string(body), "\n")
	if response.StatusCode != http.StatusOK || back != string(sent) {
		return lab.Answer{}, fmt.Errorf("status %s: %d bytes came back, not the %d that were sent", response.Status, len(back), len(sent))
	}
	server, source, _ := strings.Cut(line, " ")
	address, err := netip.ParseAddrPort(source)
	return lab.Answer{Server: server, Client: address}, err
}
