package translate

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/fairlead/fairlead/translate/model"
)

// An object of some kilobytes can name a thousand addresses and a thousand ports, and ask for a million frontends, on every
// node and in every replica. So each product that one object spans has a bound. What is beyond it is left out, with a Problem
// that says what, and the rest is forwarded. No bound is near what Services are used for.
const (
	// MaxFrontends is how many frontends one Service has at most. Each costs some kilobytes here and elements in the kernel
	// of every node. A thousand ports in both families, with their node ports, fit.
	MaxFrontends = 4096

	// MaxEndpoints is how many endpoints one set holds at most: as many as fit the 4 MiB that gRPC receives as one message
	// by default, since an assignment cannot be split. Of more, the first in order are used.
	MaxEndpoints = 65536

	// MaxServiceEndpoints is how many endpoints all ports of one Service, and both families, hold together at most. A slice of a
	// thousand endpoints names each for every port that it has.
	MaxServiceEndpoints = 4 * MaxEndpoints

	// MaxSourceEntries is how many source ranges all addresses of a load balancer and their ports have together at most,
	// since a node looks up both at once. Who is in a range that is left out is not let in.
	MaxSourceEntries = 65536
)

// asked is how many frontends a Service asks for, of each kind.
func asked(s *model.Service) map[model.Kind]int {
	all := map[model.Kind]int{}
	for kind, addresses := range addressesOf(s) {
		all[kind] = len(addresses) * len(s.Ports)
	}
	for _, p := range s.Ports {
		for _, family := range families {
			if p.NodePort != 0 && hasFamily(s, family) {
				all[model.NodePort]++
			}
		}
	}
	return all
}

// addressesOf returns the addresses of a Service by kind, each once, of the families that it has a cluster IP of.
func addressesOf(s *model.Service) map[model.Kind][]netip.Addr {
	all := map[model.Kind][]netip.Addr{}
	for kind, of := range map[model.Kind][]netip.Addr{model.ClusterIP: s.ClusterIPs, model.LoadBalancer: s.LoadBalancerIPs, model.ExternalIP: s.ExternalIPs} {
		seen := make(map[netip.Addr]bool, len(of))
		for _, a := range of {
			if !seen[a] && hasFamily(s, model.FamilyOf(a)) {
				seen[a] = true
				all[kind] = append(all[kind], a)
			}
		}
	}
	return all
}

// mayExceed reports whether a Service with so many endpoints in all its slices may exceed a bound. It is quick, and problems
// finds out.
func mayExceed(s *model.Service, endpoints int) bool {
	if s == nil {
		return endpoints > MaxEndpoints
	}
	frontends := 0
	for _, n := range asked(s) {
		frontends += n
	}
	return frontends > MaxFrontends || endpoints > MaxEndpoints || endpoints*len(s.Ports) > MaxServiceEndpoints ||
		sourcesLeftOut(s, model.IPv4) > 0 || sourcesLeftOut(s, model.IPv6) > 0
}

// entriesOf returns how many source ranges, and as many addresses of the load balancer, each of its frontends of a family has
// at most.
func entriesOf(s *model.Service, family model.Family) int {
	other := func(a netip.Addr) bool { return model.FamilyOf(a) != family }
	addresses := slices.DeleteFunc(addressesOf(s)[model.LoadBalancer], other)
	frontends := min(len(addresses)*len(s.Ports), MaxFrontends)
	return MaxSourceEntries / max(frontends, 1)
}

// sourcesLeftOut returns how many source ranges of a family are beyond the bound.
func sourcesLeftOut(s *model.Service, family model.Family) int {
	n := len(s.SourceRanges[family])
	if n == 0 {
		return 0
	}
	return max(0, n-entriesOf(s, family))
}

// bounded returns the candidates of a port, if they are at most so many; of more, those that may get connections, and of these
// the first. n is how many of them there were.
func bounded(candidates []candidate, most int) (kept []candidate, n int) {
	if len(candidates) <= most {
		return candidates, len(candidates)
	}
	kept = slices.DeleteFunc(candidates, func(c candidate) bool { return !c.ready() && !c.draining() })
	return slices.Clone(kept[:min(len(kept), most)]), len(kept)
}

// problems returns what is wrong with the Service as a whole: what exceeds a bound.
func (p *Plan) problems() []model.Problem {
	all := p.frontendProblems()
	add := func(reason model.Reason, format string, args ...any) {
		all = append(all, model.Problem{Object: object(p.service.Key), Reason: reason, Message: fmt.Sprintf(format, args...)})
	}
	for _, family := range families {
		if n := sourcesLeftOut(p.service, family); n > 0 {
			add(model.TooManySourceRanges, "spec.loadBalancerSourceRanges has %d %s ranges, and those of all its load balancer's addresses and ports together can be %d: the last %d, by address, let nobody in; write fewer and larger ranges",
				len(p.service.SourceRanges[family]), family, MaxSourceEntries, n)
		}
	}
	var cut []*pool
	for _, pool := range p.pools {
		if pool.found > len(pool.candidates) {
			cut = append(cut, pool)
			continue
		}
		n := pool.count(func(c candidate) Use { return usable(c, !pool.anyReady) })
		if n > MaxEndpoints {
			add(model.TooManyEndpoints, "port %s has %d %s endpoints, but a node can take %d: only the first of them, by address, get connections; spread the pods over several Services",
				pool.id.Port, n, pool.family, MaxEndpoints)
		}
	}
	if len(cut) > 0 {
		add(model.TooManyEndpoints, "%d of its ports, such as %s with %d %s endpoints, have more than the %d that each of so many ports can have: only the first of them, by address, get connections; spread the ports over several Services",
			len(cut), cut[0].id.Port, cut[0].found, cut[0].family, len(cut[0].candidates))
	}
	return all
}

// frontendProblems returns the Problem of a Service that asks for too many frontends.
func (p *Plan) frontendProblems() []model.Problem {
	want, total := asked(p.service), 0
	for _, n := range want {
		total += n
	}
	specs := frontendSpecs(p.service)
	if total <= MaxFrontends || len(specs) < MaxFrontends {
		return nil
	}
	got := map[model.Kind]int{}
	for _, spec := range specs {
		got[spec.kind]++
	}
	var left string
	for _, kind := range specOrder {
		if n := want[kind] - got[kind]; n > 0 {
			left += fmt.Sprintf(", %d of %d of kind %s", n, want[kind], kind)
		}
	}
	return []model.Problem{{
		Object: object(p.service.Key),
		Reason: model.TooManyFrontends,
		Message: fmt.Sprintf("its addresses times its ports are %d frontends, and a Service can have %d: not forwarded are%s, the last ones in the order of spec.ports; spread the ports or the addresses over several Services",
			total, MaxFrontends, left[1:]),
	}}
}
