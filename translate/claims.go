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

// String returns the name of the frontend that the claim is for.
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

// frontendSpec is one frontend that a Service asks for.
type frontendSpec struct {
	claim
	kind model.Kind
	port int // Index in Service.Ports.
}

// specOrder is the order in which a Service's frontends count towards MaxFrontends: what grows with the object before what
// grows with the product of its lists.
var specOrder = [...]model.Kind{model.ClusterIP, model.NodePort, model.LoadBalancer, model.ExternalIP}

// frontendSpecs returns the frontends that a Service asks for, each claim once, in order of specOrder, then port; at most
// MaxFrontends. A family that the Service has no cluster IP of has no frontends of any kind, as in kube-proxy.
func frontendSpecs(s *model.Service) []frontendSpec {
	var all []frontendSpec
	seen := map[claim]bool{}
	add := func(kind model.Kind, address netip.Addr, family model.Family, i int, number uint16) (room bool) {
		c := claim{address, family, number, s.Ports[i].Protocol}
		if !seen[c] {
			seen[c] = true
			all = append(all, frontendSpec{c, kind, i})
		}
		return len(all) < MaxFrontends
	}
	addresses := addressesOf(s)
	for _, kind := range specOrder {
		for i, p := range s.Ports {
			if kind == model.NodePort {
				for _, family := range families {
					if p.NodePort != 0 && hasFamily(s, family) && !add(kind, netip.Addr{}, family, i, p.NodePort) {
						return all
					}
				}
				continue
			}
			for _, a := range addresses[kind] {
				if !add(kind, a, model.FamilyOf(a), i, p.Port) {
					return all
				}
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

// contender is a Service that wants a claim.
type contender struct {
	service model.ServiceKey
	kind    model.Kind
	created time.Time
}

// kindOrder is the order of the kinds' right to an address. A cluster IP was allocated by the API server, which hands
// it out once; an external IP can be written by whoever may write Services.
var kindOrder = map[model.Kind]int{model.ClusterIP: 0, model.LoadBalancer: 1, model.ExternalIP: 2, model.NodePort: 3}

// compare orders contenders by their right to a claim: by kind, then age, then name.
func (c contender) compare(o contender) int {
	return cmp.Or(cmp.Compare(kindOrder[c.kind], kindOrder[o.kind]), c.created.Compare(o.created), c.service.Compare(o.service))
}

// registry holds which Services contend for which claims. The first of a claim's contenders has it.
type registry struct {
	contenders map[claim][]contender // Never empty, in order of right.
	contested  map[claim]bool        // Those with more than one.
}

// newRegistry returns a registry without claims.
func newRegistry() registry {
	return registry{contenders: map[claim][]contender{}, contested: map[claim]bool{}}
}

// replace exchanges the specs of one Service (either may be nil) and calls touched with every other Service that may
// have won or lost a claim by it.
func (r *registry) replace(before, after *model.Service, touched func(model.ServiceKey)) {
	old, fresh := contendersOf(before), contendersOf(after)
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

// contendersOf returns a Service as a contender for each of its claims.
func contendersOf(s *model.Service) map[claim]contender {
	if s == nil {
		return nil
	}
	all := map[claim]contender{}
	for _, w := range frontendSpecs(s) {
		all[w.claim] = contender{s.Key, w.kind, s.Created}
	}
	return all
}

func (r *registry) add(c claim, by contender, touched func(model.ServiceKey)) {
	others := r.contenders[c]
	for _, o := range others {
		touched(o.service)
	}
	at, _ := slices.BinarySearchFunc(others, by, contender.compare)
	r.contenders[c] = slices.Insert(others, at, by)
	r.updateContested(c)
}

func (r *registry) remove(c claim, by contender, touched func(model.ServiceKey)) {
	r.contenders[c] = slices.DeleteFunc(r.contenders[c], func(o contender) bool { return o == by })
	for _, o := range r.contenders[c] {
		touched(o.service)
	}
	r.updateContested(c)
}

// updateContested keeps the registry's invariants for a claim whose contenders changed.
func (r *registry) updateContested(c claim) {
	switch len(r.contenders[c]) {
	case 0:
		delete(r.contenders, c)
		delete(r.contested, c)
	case 1:
		delete(r.contested, c)
	default:
		r.contested[c] = true
	}
}

// granted returns the frontends that a Service gets.
func (r *registry) granted(s *model.Service) []frontendSpec {
	return slices.DeleteFunc(frontendSpecs(s), func(w frontendSpec) bool { return r.contenders[w.claim][0].service != s.Key })
}

// problems returns a Problem for each claim that a Service did not get.
func (r *registry) problems() []model.Problem {
	var all []model.Problem
	for c := range r.contested {
		winner := r.contenders[c][0]
		for _, loser := range r.contenders[c][1:] {
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
