package translate

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/fairlead/fairlead/translate/model"
)

// claim is an address:port/protocol that a Service wants to be reached by. NodePorts have no address; the two families
// of one are two claims.
type claim struct {
	address  netip.Addr
	family   model.Family
	port     uint16
	protocol model.Protocol
}

// String returns the claim as the frontend it would be is named.
func (c claim) String() string {
	f := model.Frontend{Address: c.address, Family: c.family, Port: c.port, Protocol: c.protocol}
	return f.Name()
}

// compare orders claims by address, NodePorts last, then port, protocol and family.
func (c claim) compare(o claim) int {
	if c.address.IsValid() != o.address.IsValid() {
		return compareBool(!c.address.IsValid(), !o.address.IsValid())
	}
	return cmp.Or(c.address.Compare(o.address), cmp.Compare(c.port, o.port), cmp.Compare(c.protocol, o.protocol), cmp.Compare(c.family, o.family))
}

// wish is one frontend that a Service would like to have.
type wish struct {
	claim
	kind model.Kind
	port int // Index in Service.Ports.
}

// wishes returns the frontends that a Service asks for, each claim once, in order of kind, then port. A family that the
// Service has no cluster IP of has no frontends of any kind, as in kube-proxy.
func wishes(s *model.Service) []wish {
	var all []wish
	seen := map[claim]bool{}
	add := func(kind model.Kind, address netip.Addr, family model.Family, i int, number uint16) {
		c := claim{address, family, number, s.Ports[i].Protocol}
		if !seen[c] {
			seen[c] = true
			all = append(all, wish{c, kind, i})
		}
	}
	addresses := func(kind model.Kind, of []netip.Addr) {
		for i, p := range s.Ports {
			for _, a := range of {
				if family := model.FamilyOf(a); hasFamily(s, family) {
					add(kind, a, family, i, p.Port)
				}
			}
		}
	}
	addresses(model.ClusterIP, s.ClusterIPs)
	addresses(model.LoadBalancer, s.LoadBalancerIPs)
	addresses(model.ExternalIP, s.ExternalIPs)
	for i, p := range s.Ports {
		for _, family := range families {
			if p.NodePort != 0 && hasFamily(s, family) {
				add(model.NodePort, netip.Addr{}, family, i, p.NodePort)
			}
		}
	}
	return all
}

// families are the two families, in the order in which they are listed.
var families = [...]model.Family{model.IPv4, model.IPv6}

// hasFamily reports whether a Service has a cluster IP of a family.
func hasFamily(s *model.Service, family model.Family) bool {
	return slices.ContainsFunc(s.ClusterIPs, func(a netip.Addr) bool { return model.FamilyOf(a) == family })
}

// claimant is a Service that wants a claim.
type claimant struct {
	service model.ServiceKey
	kind    model.Kind
	created time.Time
}

// kindOrder is the order of the kinds' right to an address. A cluster IP was allocated by the API server, which hands
// it out once; an external IP can be written by whoever may write Services.
var kindOrder = map[model.Kind]int{model.ClusterIP: 0, model.LoadBalancer: 1, model.ExternalIP: 2, model.NodePort: 3}

// compare orders claimants by their right to a claim: by kind, then age, then name.
func (c claimant) compare(o claimant) int {
	return cmp.Or(cmp.Compare(kindOrder[c.kind], kindOrder[o.kind]), c.created.Compare(o.created), c.service.Compare(o.service))
}

// registry knows which Services want which claims. The first of a claim's claimants has it.
type registry struct {
	claimants map[claim][]claimant // Never empty, in order of right.
	contested map[claim]bool       // Those with more than one.
}

// newRegistry returns a registry without claims.
func newRegistry() registry {
	return registry{claimants: map[claim][]claimant{}, contested: map[claim]bool{}}
}

// replace exchanges the wishes of one Service (either may be nil) and calls touched with every other Service that may
// have won or lost a claim by it.
func (r *registry) replace(before, after *model.Service, touched func(model.ServiceKey)) {
	old, fresh := claimantsOf(before), claimantsOf(after)
	for c, by := range old {
		if fresh[c] != by {
			r.remove(c, by, touched)
		}
	}
	for c, by := range fresh {
		if old[c] != by {
			r.add(c, by, touched)
		}
	}
}

// claimantsOf returns a Service as a claimant of each of its claims.
func claimantsOf(s *model.Service) map[claim]claimant {
	if s == nil {
		return nil
	}
	all := map[claim]claimant{}
	for _, w := range wishes(s) {
		all[w.claim] = claimant{s.Key, w.kind, s.Created}
	}
	return all
}

func (r *registry) add(c claim, by claimant, touched func(model.ServiceKey)) {
	others := r.claimants[c]
	for _, o := range others {
		touched(o.service)
	}
	at, _ := slices.BinarySearchFunc(others, by, claimant.compare)
	r.claimants[c] = slices.Insert(others, at, by)
	r.note(c)
}

func (r *registry) remove(c claim, by claimant, touched func(model.ServiceKey)) {
	r.claimants[c] = slices.DeleteFunc(r.claimants[c], func(o claimant) bool { return o == by })
	for _, o := range r.claimants[c] {
		touched(o.service)
	}
	r.note(c)
}

// note keeps the registry's invariants for a claim whose claimants changed.
func (r *registry) note(c claim) {
	switch len(r.claimants[c]) {
	case 0:
		delete(r.claimants, c)
		delete(r.contested, c)
	case 1:
		delete(r.contested, c)
	default:
		r.contested[c] = true
	}
}

// granted returns the frontends that a Service gets.
func (r *registry) granted(s *model.Service) []wish {
	return slices.DeleteFunc(wishes(s), func(w wish) bool { return r.claimants[w.claim][0].service != s.Key })
}

// problems returns a Problem for each claim that a Service did not get.
func (r *registry) problems() []model.Problem {
	var all []model.Problem
	for c := range r.contested {
		winner := r.claimants[c][0]
		for _, loser := range r.claimants[c][1:] {
			all = append(all, model.Problem{
				Object: object(loser.service),
				Reason: model.DuplicateFrontend,
				Message: fmt.Sprintf("%s %s is not forwarded to it: %s has it as %s; give one of the two another address or port",
					loser.kind, c, object(winner.service), winner.kind),
			})
		}
	}
	return all
}

// object returns the name of a Service in problems.
func object(k model.ServiceKey) string {
	return model.ObjectKey{Kind: model.KindService, Namespace: k.Namespace, Name: k.Name}.String()
}
