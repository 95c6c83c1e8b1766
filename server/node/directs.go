package node

import (
	"net/netip"
	"slices"

	endpointpb "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/fairlead/fairlead/server/node/dataplane"
	"github.com/fairlead/fairlead/translate/frontendpb"
)

// directs tells the kernel's table the endpoints that direct frontends choose from. They come as Envoy's assignments, of which
// only those are read that are needed.
type directs struct {
	assignments map[string]*anypb.Any
	changed     map[string]bool     // Assignments that have changed since the table was told.
	sets        map[string][]string // The assignments that a frontend needs, by the frontend's name.
	told        map[string]bool     // Assignments that the table knows.
	reflectors  reflectors
}

func newDirects() directs {
	return directs{assignments: map[string]*anypb.Any{}, changed: map[string]bool{}, sets: map[string][]string{}, told: map[string]bool{}, reflectors: reflectors{}}
}

// set takes an assignment in; nil: there is none any more.
func (d *directs) set(name string, a *anypb.Any) {
	if a == nil {
		delete(d.assignments, name)
	} else {
		d.assignments[name] = a
	}
	d.changed[name] = true
}

// use notes what a frontend, nil if there is none of that name, needs.
func (d *directs) use(name string, f *frontendpb.Frontend) {
	if f.GetDirect() == nil {
		delete(d.sets, name)
	} else {
		d.sets[name] = dataplane.SetsOf(f)
	}
}

// apply tells the table.
func (d *directs) apply(table *dataplane.Table) {
	needed := map[string]bool{}
	for _, sets := range d.sets {
		for _, set := range sets {
			needed[set] = true
			if d.changed[set] || !d.told[set] {
				table.SetEndpoints(set, addresses(d.assignments[set]))
			}
		}
	}
	for set := range d.told {
		if !needed[set] {
			table.SetEndpoints(set, nil)
		}
	}
	d.told = needed
	clear(d.changed)
}

// addresses returns the endpoints of an assignment, in order, each once; none if it is nil or cannot be read.
func addresses(a *anypb.Any) []netip.AddrPort {
	assignment := &endpointpb.ClusterLoadAssignment{}
	if a == nil || a.UnmarshalTo(assignment) != nil {
		return nil // Envoy rejects one that cannot be read, and that is reported.
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
