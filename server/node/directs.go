package node

import (
	"net/netip"
	"slices"

	endpointpb "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/fairlead/fairlead/server/node/dataplane"
	"github.com/fairlead/fairlead/translate/frontendpb"
)

// directs sets the endpoints of direct frontends in the kernel's table.
type directs struct {
	assignments map[string][]netip.AddrPort // The endpoints of each assignment, in order.
	changed     map[string]bool             // Assignments that have changed since apply set them in the table.
	sets        map[string][]string         // The assignments that a frontend uses, by the frontend's name.
	applied     map[string]bool             // Assignments that are set in the table.
	reflectors  reflectors
}

func newDirects() directs {
	return directs{assignments: map[string][]netip.AddrPort{}, changed: map[string]bool{}, sets: map[string][]string{}, applied: map[string]bool{}, reflectors: reflectors{}}
}

// set stores the endpoints of an assignment.
func (d *directs) set(name string, endpoints []netip.AddrPort) {
	d.assignments[name] = endpoints
	d.changed[name] = true
}

// remove deletes an assignment.
func (d *directs) remove(name string) {
	delete(d.assignments, name)
	d.changed[name] = true
}

// use records which assignments a frontend, nil if it was removed, uses.
func (d *directs) use(name string, f *frontendpb.Frontend) {
	if f.GetDirect() == nil {
		delete(d.sets, name)
	} else {
		d.sets[name] = dataplane.SetsOf(f)
	}
}

// apply sets the changed assignments in the table.
func (d *directs) apply(table *dataplane.Table) {
	needed := map[string]bool{}
	for _, sets := range d.sets {
		for _, set := range sets {
			needed[set] = true
			if d.changed[set] || !d.applied[set] {
				table.SetEndpoints(set, d.assignments[set])
			}
		}
	}
	for set := range d.applied {
		if !needed[set] {
			table.SetEndpoints(set, nil)
		}
	}
	d.applied = needed
	clear(d.changed)
}

// endpointsOf returns the endpoints of an assignment, in order, each once; none if it cannot be read.
func endpointsOf(a *anypb.Any) []netip.AddrPort {
	assignment := &endpointpb.ClusterLoadAssignment{}
	if a.UnmarshalTo(assignment) != nil {
		return nil // Envoy NACKs an assignment that cannot be unmarshalled, and the agent logs that.
	}
	var all []netip.AddrPort
	for _, locality := range assignment.GetEndpoints() {
		for _, e := range locality.GetLbEndpoints() {
			at := e.GetEndpoint().GetAddress().GetSocketAddress()
			if ip, err := netip.ParseAddr(at.GetAddress()); err == nil {
				all = append(all, netip.AddrPortFrom(ip, uint16(at.GetPortValue())))
			}
		}
	}
	slices.SortFunc(all, netip.AddrPort.Compare)
	return slices.Compact(all)
}
