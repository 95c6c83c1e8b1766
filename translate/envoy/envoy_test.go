package envoy

import (
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"testing"

	clusterpb "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointpb "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"

	"github.com/fairlead/fairlead/translate/frontendpb"
	"github.com/fairlead/fairlead/translate/model"
)

// set returns an endpoint set with endpoints in zones a, b, a.
func set(name string, addresses ...string) *model.EndpointSet {
	s := &model.EndpointSet{Name: name}
	for i, a := range addresses {
		e := model.Endpoint{AddrPort: netip.MustParseAddrPort(a)}
		e.Zone = []string{"a", "b"}[i%2]
		s.Endpoints = append(s.Endpoints, e)
	}
	return s
}

var (
	web      = set("default/web:http/TCP", "10.244.1.5:8080", "10.244.2.7:8080", "10.244.2.8:8080")
	webLocal = set("default/web:http/TCP/local", "10.244.1.5:8080")
	empty    = set("default/none:http/TCP")
)

// same returns routes that are alike for all origins.
func same(r model.Route) [model.Origins]model.Route { return [model.Origins]model.Route{r, r, r} }

func TestResources(t *testing.T) {
	clusterIP := netip.MustParseAddr("10.96.0.10")
	forward := func(source model.Source, s *model.EndpointSet) model.Route {
		return model.Route{Verdict: model.Forward, Source: source, Set: s}
	}
	tests := map[string]struct {
		frontend model.Frontend
		clusters []string // name → assignment
		routes   string   // pod, node, outside
	}{
		"ClusterIP": {
			model.Frontend{Address: clusterIP, Family: model.IPv4, Port: 80, Protocol: model.TCP, Kind: model.ClusterIP,
				Routes: [model.Origins]model.Route{forward(model.Preserve, web), forward(model.Preserve, web), forward(model.Masquerade, web)}},
			[]string{"10.96.0.10:80 → default/web:http/TCP"}, "FORWARD KEEP, FORWARD MASQ, FORWARD MASQ",
		},
		"UDP": {
			model.Frontend{Address: netip.MustParseAddr("fd00:96::10"), Family: model.IPv6, Port: 53, Protocol: model.UDP, Kind: model.ClusterIP, Direct: &model.Direct{},
				Routes: [model.Origins]model.Route{forward(model.Preserve, web), forward(model.Preserve, web), forward(model.Masquerade, web)}},
			nil, "REFUSE CLASS_UNSPECIFIED, REFUSE CLASS_UNSPECIFIED, REFUSE CLASS_UNSPECIFIED",
		},
		"NodePort, policy Cluster": {
			model.Frontend{Family: model.IPv4, Port: 30080, Protocol: model.TCP, Kind: model.NodePort, Routes: same(forward(model.Masquerade, web))},
			[]string{"*:30080 → default/web:http/TCP"}, "FORWARD MASQ, FORWARD MASQ, FORWARD MASQ",
		},
		"NodePort, policy Local": {
			model.Frontend{Family: model.IPv6, Port: 30080, Protocol: model.TCP, Kind: model.NodePort,
				Routes: [model.Origins]model.Route{forward(model.Preserve, web), forward(model.Masquerade, web), forward(model.Preserve, webLocal)}},
			[]string{"[*]:30080 → default/web:http/TCP", "external-local/[*]:30080 → default/web:http/TCP/local"},
			"FORWARD KEEP, FORWARD MASQ, FORWARD EXTERNAL",
		},
		"none local": {
			model.Frontend{Address: netip.MustParseAddr("203.0.113.5"), Family: model.IPv4, Port: 80, Protocol: model.TCP, Kind: model.LoadBalancer,
				Routes: [model.Origins]model.Route{forward(model.Preserve, web), forward(model.Masquerade, web), {Verdict: model.Drop, Set: empty}}},
			[]string{"203.0.113.5:80 → default/web:http/TCP", "external-local/203.0.113.5:80 → default/none:http/TCP"},
			"FORWARD KEEP, FORWARD MASQ, DROP CLASS_UNSPECIFIED",
		},
		"internal policy Local": {
			model.Frontend{Address: clusterIP, Family: model.IPv4, Port: 80, Protocol: model.TCP, Kind: model.ClusterIP,
				Routes: [model.Origins]model.Route{forward(model.Preserve, webLocal), forward(model.Preserve, webLocal), forward(model.Masquerade, webLocal)}},
			[]string{"10.96.0.10:80 → default/web:http/TCP/local"}, "FORWARD KEEP, FORWARD MASQ, FORWARD MASQ",
		},
		// The cluster is there before the first endpoint is, so that the endpoint's arrival changes one assignment.
		"no endpoints": {
			model.Frontend{Address: clusterIP, Family: model.IPv4, Port: 81, Protocol: model.TCP, Kind: model.ClusterIP,
				Routes: same(model.Route{Verdict: model.Refuse, Set: empty})},
			[]string{"10.96.0.10:81 → default/none:http/TCP"}, "REFUSE CLASS_UNSPECIFIED, REFUSE CLASS_UNSPECIFIED, REFUSE CLASS_UNSPECIFIED",
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			var clusters, used []string
			var routes string
			for _, r := range Resources([]model.Frontend{test.frontend}) {
				if v, ok := r.Message.(interface{ ValidateAll() error }); ok {
					if err := v.ValidateAll(); err != nil {
						t.Errorf("%s: %v", r.Name, err)
					}
				}
				switch m := r.Message.(type) {
				case *clusterpb.Cluster:
					clusters = append(clusters, r.Name+" → "+m.GetEdsClusterConfig().GetServiceName())
				case *frontendpb.Frontend:
					used = ClusterNames(r.Name, m)
					var all []string
					for _, route := range []*frontendpb.Route{m.GetPod(), m.GetNode(), m.GetOutside()} {
						all = append(all, route.GetVerdict().String()+" "+route.GetClass().String())
					}
					routes = strings.Join(all, ", ")
					if r.Name != test.frontend.Name() || m.Addr() != test.frontend.Address {
						t.Errorf("frontend %s is sent as %s with address %s", test.frontend.Name(), r.Name, m.Addr())
					}
				}
			}
			if !slices.Equal(clusters, test.clusters) {
				t.Errorf("clusters %q, want %q", clusters, test.clusters)
			}
			for _, name := range used {
				if !slices.ContainsFunc(clusters, func(c string) bool { return strings.HasPrefix(c, name+" ") }) {
					t.Errorf("connections go to cluster %s, which is not among %q", name, clusters)
				}
			}
			if routes != test.routes {
				t.Errorf("routes %q, want %q", routes, test.routes)
			}
		})
	}
}

// An agent that does not know source ranges drops everyone, one that does knows the routes of those who may dial.
func TestSourceRanges(t *testing.T) {
	vip := netip.MustParseAddr("203.0.113.5")
	f := model.Frontend{
		Address: vip, Family: model.IPv4, Port: 80, Protocol: model.TCP, Kind: model.LoadBalancer,
		Routes:       same(model.Route{Verdict: model.Forward, Source: model.Masquerade, Set: web}),
		SourceRanges: &model.SourceRanges{Prefixes: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, Addresses: []netip.Addr{vip}},
	}
	resources := Resources([]model.Frontend{f})
	pb := resources[len(resources)-1].Message.(*frontendpb.Frontend)
	for _, r := range []*frontendpb.Route{pb.GetPod(), pb.GetNode(), pb.GetOutside()} {
		if r.GetVerdict() != frontendpb.Verdict_DROP {
			t.Errorf("an older agent would %s", r.GetVerdict())
		}
	}
	for _, r := range Routes(pb) {
		if r.GetVerdict() != frontendpb.Verdict_FORWARD || r.GetClass() != frontendpb.Class_MASQ {
			t.Errorf("who may dial meets %s", r)
		}
	}
	if got := ClusterNames(f.Name(), pb); !slices.Equal(got, []string{"203.0.113.5:80"}) {
		t.Errorf("clusters %q", got)
	}
	if l := pb.GetLimited(); !slices.Equal(l.GetRanges(), []string{"10.0.0.0/8"}) || len(l.GetAddresses()) != 1 {
		t.Errorf("ranges %s", l)
	}
}

// Frontends that use the same endpoints share an assignment.
func TestSharedAssignment(t *testing.T) {
	route := model.Route{Verdict: model.Forward, Source: model.Masquerade, Set: web}
	frontends := []model.Frontend{
		{Address: netip.MustParseAddr("10.96.0.10"), Family: model.IPv4, Port: 80, Protocol: model.TCP, Kind: model.ClusterIP, Routes: same(route)},
		{Family: model.IPv4, Port: 30080, Protocol: model.TCP, Kind: model.NodePort, Routes: same(route)},
	}
	var assignments []Resource
	for _, r := range Resources(frontends) {
		if r.TypeURL == AssignmentType {
			assignments = append(assignments, r)
		}
	}
	if len(assignments) != 1 {
		t.Fatalf("assignments: %+v", assignments)
	}
	// Localities are complete enough for gRPC, which ignores those without a weight, and their weights keep endpoints equal.
	cla := assignments[0].Message.(*endpointpb.ClusterLoadAssignment)
	var got []string
	for _, l := range cla.GetEndpoints() {
		if int(l.GetLoadBalancingWeight().GetValue()) != len(l.GetLbEndpoints()) {
			t.Errorf("zone %s has weight %d and %d endpoints", l.GetLocality().GetZone(), l.GetLoadBalancingWeight().GetValue(), len(l.GetLbEndpoints()))
		}
		for _, e := range l.GetLbEndpoints() {
			got = append(got, l.GetLocality().GetZone()+" "+e.GetEndpoint().GetAddress().GetSocketAddress().GetAddress())
		}
	}
	if want := []string{"a 10.244.1.5", "a 10.244.2.8", "b 10.244.2.7"}; !slices.Equal(got, want) {
		t.Errorf("endpoints %q, want %q", got, want)
	}
}

// Every listener satisfies Envoy's own constraints, and no two have one address.
func TestListeners(t *testing.T) {
	aliases := []Alias{NewAlias(netip.MustParseAddr("172.30.0.1"), 1), NewAlias(netip.MustParseAddr("fd00:30::1"), 2)}
	seen := map[string]string{}
	check := func(l interface {
		ValidateAll() error
		GetName() string
	}, address string) {
		if err := l.ValidateAll(); err != nil {
			t.Errorf("listener %s: %v", l.GetName(), err)
		}
		if other := seen[address]; other != "" {
			t.Errorf("listeners %s and %s are both bound to %s", other, l.GetName(), address)
		}
		seen[address] = l.GetName()
	}
	for _, class := range frontendpb.Classes {
		for _, l := range CatchAll(class, aliases) {
			check(l, l.GetAddress().String())
			if len(l.GetFilterChains()) != 2 {
				t.Errorf("listener %s has %d chains beside the default, want one for NodePorts and one for its family's alias", l.GetName(), len(l.GetFilterChains()))
			}
		}
	}
}

func TestBootstrap(t *testing.T) {
	b, err := Bootstrap{Node: "n1/2", Instance: 2, XDSSocket: "/run/fairlead/xds.sock", AdminSocket: "/run/fairlead/envoy-2.sock"}.JSON()
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Node struct {
			ID       string
			Metadata map[string]any
		}
		Watchdogs map[string]struct {
			KillTimeout string `json:"kill_timeout"`
		}
	}
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	if got.Node.ID != "n1/2" || got.Node.Metadata[GenerationKey] != 2.0 {
		t.Errorf("node: %+v", got.Node)
	}
	if w := got.Watchdogs; w["worker_watchdog"].KillTimeout != "10s" || w["main_thread_watchdog"].KillTimeout != "60s" {
		t.Errorf("watchdogs: %+v; a thread that hangs must end Envoy", w)
	}
	if _, err := (Bootstrap{Node: "n1/1"}).JSON(); err == nil {
		t.Error("a bootstrap without sockets is accepted")
	}
}
