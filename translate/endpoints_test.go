package translate

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/translate/model"
)

// The conditions that endpoints of pods come in.
const (
	ready    = "ready"
	unready  = "unready"
	draining = "draining" // Terminating and serving.
	gone     = "gone"     // Terminating and not serving.
)

// endpoint reads an endpoint as the tables below write it: the last byte of its address, its condition, then its node as
// on=NODE, and the nodes and zones that it is hinted to as node=A,B and zone=A,B.
func endpoint(t *testing.T, text string) model.SliceEndpoint {
	t.Helper()
	words := strings.Fields(text)
	e := model.SliceEndpoint{Address: netip.MustParseAddr("10.0.0." + words[0])}
	switch words[1] {
	case ready:
		e.Ready, e.Serving = true, true
	case unready:
	case draining:
		e.Serving, e.Terminating = true, true
	case gone:
		e.Terminating = true
	default:
		t.Fatalf("%q: unknown condition", text)
	}
	for _, word := range words[2:] {
		key, value, _ := strings.Cut(word, "=")
		switch key {
		case "on":
			e.Node = value
		case "node":
			e.NodeHints = strings.Split(value, ",")
		case "zone":
			e.ZoneHints = strings.Split(value, ",")
		default:
			t.Fatalf("%q: unknown word %q", text, word)
		}
	}
	return e
}

// poolOf returns a pool of endpoints.
func poolOf(t *testing.T, endpoints []string) *pool {
	t.Helper()
	slice := &model.EndpointSlice{Family: model.IPv4, Ports: []model.SlicePort{{Protocol: model.TCP, Port: 80}}}
	for _, e := range endpoints {
		slice.Endpoints = append(slice.Endpoints, endpoint(t, e))
	}
	p := &pool{usesCluster: true, usesLocal: true}
	p.candidates = gather([]*model.EndpointSlice{slice}, model.Port{Protocol: model.TCP, Port: 80}, model.IPv4)
	p.summarize()
	return p
}

// used returns the last bytes of the addresses of the endpoints that are used.
func used(p *pool, use func(candidate) Use) string {
	var all []string
	for _, c := range p.candidates {
		if use(c) == Used {
			all = append(all, strings.TrimPrefix(c.addrPort.Addr().String(), "10.0.0."))
		}
	}
	return strings.Join(all, " ")
}

// TestChoose holds the cases of kube-proxy's own tests of this decision (release 1.37), and some of ours. The view is node
// n1 in zone a unless the row says otherwise.
func TestChoose(t *testing.T) {
	for _, tc := range []struct {
		name           string
		endpoints      []string
		node, zone     string // "-" is none.
		cluster, local string
		nowhere        bool // No endpoints on any node.
	}{
		{name: "hints for zones, all endpoints have one, some for this zone",
			endpoints: []string{"3 ready zone=a", "4 ready zone=b", "5 ready zone=c", "6 ready zone=a"}, cluster: "3 6"},
		{name: "the local set does not heed hints",
			endpoints: []string{"3 ready zone=a on=n1", "4 ready zone=b on=n1", "5 ready zone=c", "6 ready zone=a"}, cluster: "3 6", local: "3 4"},
		{name: "a node without a zone", zone: "-",
			endpoints: []string{"3 ready zone=a", "4 ready zone=b"}, cluster: "3 4"},
		{name: "no endpoint for this zone", zone: "z",
			endpoints: []string{"3 ready zone=a", "4 ready zone=b"}, cluster: "3 4"},
		{name: "an endpoint that is not ready is left out, hints hold among the others",
			endpoints: []string{"3 ready zone=a", "4 ready zone=b", "6 unready zone=a"}, cluster: "3"},
		{name: "only endpoints that are not ready are hinted to this zone",
			endpoints: []string{"3 unready zone=a", "4 ready zone=b", "5 ready zone=c", "6 unready zone=a"}, cluster: "4 5"},
		{name: "one ready endpoint without a hint switches hints off",
			endpoints: []string{"3 ready zone=a", "4 ready zone=b", "5 ready", "6 ready zone=a"}, cluster: "3 4 5 6"},
		{name: "an endpoint without a hint that is not ready does not",
			endpoints: []string{"3 ready zone=a", "4 ready zone=b", "5 unready", "6 draining"}, cluster: "3"},
		{name: "an endpoint may be hinted to several zones", zone: "c",
			endpoints: []string{"3 ready zone=a,b,c", "4 ready zone=b,c", "5 ready zone=b,d", "6 ready zone=c"}, cluster: "3 4 6"},

		{name: "hints for nodes come before those for zones",
			endpoints: []string{"3 ready zone=a node=n1", "4 ready zone=b node=n2", "5 ready zone=c node=n3", "6 ready zone=a node=n4"}, cluster: "3"},
		{name: "hints for nodes and zones switched off by one without either",
			endpoints: []string{"3 ready zone=a node=n1", "4 ready", "5 ready zone=c node=n3", "6 ready zone=a node=n4"}, cluster: "3 4 5 6"},
		{name: "hints for nodes switched off by one without, those for zones hold",
			endpoints: []string{"3 ready zone=a node=n1", "4 ready zone=b", "5 ready zone=c node=n3", "6 ready zone=a node=n4"}, cluster: "3 6"},
		{name: "no endpoint for this node, so hints for zones hold", node: "n0",
			endpoints: []string{"3 ready zone=a node=n1", "4 ready zone=b node=n2", "5 ready zone=c node=n3", "6 ready zone=a node=n4"}, cluster: "3 6"},
		{name: "no endpoint for this node nor for this zone", node: "n0", zone: "z",
			endpoints: []string{"3 ready zone=a node=n1", "4 ready zone=b node=n2"}, cluster: "3 4"},
		{name: "hints for nodes alone, none for this node", node: "n0",
			endpoints: []string{"3 ready node=n1", "4 ready node=n2"}, cluster: "3 4"},
		{name: "a node without a name is nobody's hint", node: "-", zone: "-",
			endpoints: []string{"3 ready node=n1 zone=a on=n1", "4 ready node=n2 zone=b"}, cluster: "3 4"},

		{name: "hints and local endpoints differ",
			endpoints: []string{"0 ready zone=a on=n1", "1 ready zone=b on=n1", "2 ready zone=a on=n2", "3 ready zone=b on=n2"}, cluster: "0 2", local: "0 1"},
		{name: "no endpoints", nowhere: true},
		{name: "all endpoints on other nodes",
			endpoints: []string{"0 ready on=n2", "1 ready on=n2"}, cluster: "0 1"},
		{name: "all endpoints on this node",
			endpoints: []string{"0 ready on=n1", "1 ready on=n1"}, cluster: "0 1", local: "0 1"},
		{name: "endpoints on this node and others",
			endpoints: []string{"0 ready on=n1", "1 ready on=n2"}, cluster: "0 1", local: "0"},
		{name: "an endpoint without a node is on none", node: "-",
			endpoints: []string{"0 ready", "1 ready on=n2"}, cluster: "0 1"},
		{name: "nor is a terminating one", node: "-",
			endpoints: []string{"0 draining", "1 draining on=n2"}, cluster: "0 1"},

		{name: "none is ready",
			endpoints: []string{"0 unready", "1 unready on=n1"}, nowhere: true},
		{name: "some are ready",
			endpoints: []string{"0 unready", "1 ready"}, cluster: "1"},
		{name: "all are terminating",
			endpoints: []string{"0 draining on=n1", "1 draining on=n2"}, cluster: "0 1", local: "0"},
		{name: "all are terminating on other nodes",
			endpoints: []string{"0 draining on=n2", "1 draining on=n2"}, cluster: "0 1"},
		{name: "terminating endpoints are used whatever they are hinted to",
			endpoints: []string{"0 draining on=n1 zone=a", "1 draining on=n2 zone=b", "2 draining on=n2"}, cluster: "0 1 2", local: "0"},
		{name: "terminating and not serving is no use",
			endpoints: []string{"0 gone on=n1", "1 gone on=n2"}, nowhere: true},
		{name: "the local set falls back on its own",
			endpoints: []string{"0 ready on=n2", "1 unready on=n1", "2 draining on=n1", "3 draining on=n2"}, cluster: "0", local: "2"},
		{name: "a ready local endpoint keeps terminating ones out, though other nodes have none",
			endpoints: []string{"0 draining on=n2", "1 ready on=n1", "2 draining on=n1"}, cluster: "1", local: "1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := poolOf(t, tc.endpoints)
			c := choose(p, model.View{Node: orDefault(tc.node, "n1"), Zone: orDefault(tc.zone, "a")})
			if got := used(p, c.cluster); got != tc.cluster {
				t.Errorf("cluster set is %q, want %q", got, tc.cluster)
			}
			if got := used(p, c.local); got != tc.local {
				t.Errorf("local set is %q, want %q", got, tc.local)
			}
			if got := p.anywhere(); got == tc.nowhere {
				t.Errorf("endpoints anywhere: %t, want %t", got, !tc.nowhere)
			}
		})
	}
}

// orDefault returns a value, "-" standing for none, or what an unset one stands for.
func orDefault(value, unset string) string {
	switch value {
	case "":
		return unset
	case "-":
		return ""
	default:
		return value
	}
}

func TestUses(t *testing.T) {
	p := poolOf(t, []string{"1 ready on=n1 zone=a", "2 ready on=n2 zone=b", "3 unready on=n1 zone=a", "4 draining on=n1", "5 gone on=n1", "6 draining on=n2"})
	c := choose(p, model.View{Node: "n1", Zone: "a"})
	var got [][2]Use
	for _, e := range p.candidates {
		got = append(got, [2]Use{c.cluster(e), c.local(e)})
	}
	want := [][2]Use{
		{Used, Used},
		{OtherZone, NotLocal},
		{NotReady, NotReady},
		{Terminating, Terminating},
		{Terminating, Terminating},
		{Terminating, NotLocal},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("uses (-want +got):\n%s", diff)
	}
}

func TestGatherCountsAnAddressOnce(t *testing.T) {
	slice := func(name string, port uint16, endpoints ...string) *model.EndpointSlice {
		s := &model.EndpointSlice{Name: name, Family: model.IPv4, Ports: []model.SlicePort{{Name: "p", Protocol: model.TCP, Port: port}}}
		for _, e := range endpoints {
			s.Endpoints = append(s.Endpoints, endpoint(t, e))
		}
		return s
	}
	for _, tc := range []struct {
		name   string
		slices []*model.EndpointSlice
		want   string // Address and node of each.
	}{
		{"different addresses", []*model.EndpointSlice{slice("a", 80, "2 ready on=n1"), slice("b", 80, "1 ready on=n2")}, "1/n2 2/n1"},
		{"the first slice by name", []*model.EndpointSlice{slice("a", 80, "1 ready on=n1"), slice("b", 80, "1 ready on=n2")}, "1/n1"},
		{"one that is not terminating, in a later slice", []*model.EndpointSlice{slice("a", 80, "1 draining on=n1"), slice("b", 80, "1 ready on=n2")}, "1/n2"},
		{"one that is not terminating, in an earlier slice", []*model.EndpointSlice{slice("a", 80, "1 unready on=n1"), slice("b", 80, "1 draining on=n2")}, "1/n1"},
		{"in one slice", []*model.EndpointSlice{slice("a", 80, "1 gone on=n1", "1 ready on=n2", "1 ready on=n3")}, "1/n2"},
		{"all terminating", []*model.EndpointSlice{slice("a", 80, "1 draining on=n1"), slice("b", 80, "1 gone on=n2")}, "1/n1"},
		{"different ports are different endpoints", []*model.EndpointSlice{slice("a", 81, "1 ready on=n1"), slice("b", 80, "1 ready on=n2")}, "1/n2 1/n1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			byName := map[string]*model.EndpointSlice{}
			for _, s := range tc.slices {
				byName[s.Name] = s
			}
			var got []string
			for _, c := range gather(sortSlices(byName), model.Port{Name: "p", Protocol: model.TCP, Port: 1}, model.IPv4) {
				got = append(got, strings.TrimPrefix(c.endpoint.Address.String(), "10.0.0.")+"/"+c.endpoint.Node)
			}
			if got := strings.Join(got, " "); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}
