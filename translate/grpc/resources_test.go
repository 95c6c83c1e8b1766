package grpc

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	clusterpb "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointpb "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerpb "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routepb "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	managerpb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	gcpresource "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/protobuf/proto"

	"github.com/fairlead/fairlead/translate"
	"github.com/fairlead/fairlead/translate/envoy"
	"github.com/fairlead/fairlead/translate/model"
)

var (
	ipv4 = netip.MustParseAddr("10.96.0.10")
	ipv6 = netip.MustParseAddr("fd00:96::10")
)

// serviceWeb returns a Service default/web.
func serviceWeb(policy model.TrafficPolicy, ips []netip.Addr, ports ...model.Port) *model.Service {
	return &model.Service{
		Key:   model.ServiceKey{Namespace: "default", Name: "web"},
		Ports: ports, ClusterIPs: ips,
		ExternalIPs:           []netip.Addr{netip.MustParseAddr("192.0.2.1")},
		InternalTrafficPolicy: policy, ExternalTrafficPolicy: model.Cluster,
	}
}

// frontends returns what a node forwards for Services, of which the result has the first's.
func frontends(t *testing.T, services ...*model.Service) []model.Frontend {
	t.Helper()
	w := translate.NewWorld()
	for _, s := range services {
		w.Set(model.Object{Key: model.ObjectKey{Kind: model.KindService, Namespace: s.Key.Namespace, Name: s.Key.Name}, Service: s})
	}
	plan := w.Plan(services[0].Key)
	if plan == nil {
		return nil
	}
	return plan.Frontends(plan.Variant(model.View{Node: "n1"}))
}

func TestRoutesLeadToTheEndpointsOfTheClusterIP(t *testing.T) {
	http := model.Port{Name: "http", Protocol: model.TCP, Port: 80, NodePort: 30080}
	tests := []struct {
		name    string
		service *model.Service
		want    map[string]string // Where web.default.svc.cluster.local leads, by port.
	}{
		{"unnamed port", serviceWeb(model.Cluster, []netip.Addr{ipv4}, model.Port{Protocol: model.TCP, Port: 80}),
			map[string]string{"80": "default/web:80/TCP"}},
		{"named port", serviceWeb(model.Cluster, []netip.Addr{ipv4}, http),
			map[string]string{"80": "default/web:http/TCP", "http": "default/web:http/TCP"}},
		{"two ports", serviceWeb(model.Cluster, []netip.Addr{ipv4}, http, model.Port{Name: "admin", Protocol: model.TCP, Port: 81}),
			map[string]string{"80": "default/web:http/TCP", "http": "default/web:http/TCP", "81": "default/web:admin/TCP", "admin": "default/web:admin/TCP"}},
		{"Local policy", serviceWeb(model.Local, []netip.Addr{ipv4}, http),
			map[string]string{"80": "default/web:http/TCP/local", "http": "default/web:http/TCP/local"}},
		{"IPv6", serviceWeb(model.Cluster, []netip.Addr{ipv6}, http),
			map[string]string{"80": "default/web:http/TCP/ipv6", "http": "default/web:http/TCP/ipv6"}},
		{"IPv4 first", serviceWeb(model.Cluster, []netip.Addr{ipv4, ipv6}, http),
			map[string]string{"80": "default/web:http/TCP", "http": "default/web:http/TCP"}},
		{"IPv6 first", serviceWeb(model.Cluster, []netip.Addr{ipv6, ipv4}, http),
			map[string]string{"80": "default/web:http/TCP/ipv6", "http": "default/web:http/TCP/ipv6"}},
		{"UDP", serviceWeb(model.Cluster, []netip.Addr{ipv4}, model.Port{Name: "dns", Protocol: model.UDP, Port: 53}),
			map[string]string{}},
		{"TCP beside UDP", serviceWeb(model.Cluster, []netip.Addr{ipv4}, model.Port{Name: "dns", Protocol: model.UDP, Port: 53}, model.Port{Name: "dns-tcp", Protocol: model.TCP, Port: 53}),
			map[string]string{"53": "default/web:dns-tcp/TCP", "dns-tcp": "default/web:dns-tcp/TCP"}},
		{"a name that is another port's number", serviceWeb(model.Cluster, []netip.Addr{ipv4}, model.Port{Name: "81", Protocol: model.TCP, Port: 80}, model.Port{Name: "b", Protocol: model.TCP, Port: 81}),
			map[string]string{"80": "default/web:81/TCP", "81": "default/web:b/TCP", "b": "default/web:b/TCP"}},
		{"a name that is its own number", serviceWeb(model.Cluster, []netip.Addr{ipv4}, model.Port{Name: "80", Protocol: model.TCP, Port: 80}),
			map[string]string{"80": "default/web:80/TCP"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := map[string]string{}
			for _, r := range DefaultDomain.Routes(tt.service, frontends(t, tt.service)) {
				port, found := strings.CutPrefix(r.Name, "web.default.svc.cluster.local:")
				if !found || got[port] != "" {
					t.Errorf("route %s is of another Service, or there twice", r.Name)
				}
				got[port] = clusterOf(t, r)
			}
			if !maps.Equal(got, tt.want) {
				t.Errorf("routes lead to %v, want %v", got, tt.want)
			}
		})
	}
}

// clusterOf returns where a route leads every call.
func clusterOf(t *testing.T, r envoy.Resource) string {
	t.Helper()
	config := r.Message.(*routepb.RouteConfiguration)
	if err := config.ValidateAll(); err != nil {
		t.Errorf("route %s: %v", r.Name, err)
	}
	host := config.GetVirtualHosts()[0]
	if !slices.Equal(host.GetDomains(), []string{"*"}) || len(host.GetRoutes()) != 1 || host.GetRoutes()[0].GetMatch().GetPrefix() != "" {
		t.Errorf("route %s is not for all calls: %v", r.Name, config)
	}
	return host.GetRoutes()[0].GetRoute().GetCluster()
}

// TestRoutesOfALostAddress: what a Service has no right to is not forwarded, with a proxy or without.
func TestRoutesOfALostAddress(t *testing.T) {
	port := model.Port{Protocol: model.TCP, Port: 80}
	older := serviceWeb(model.Cluster, []netip.Addr{ipv4}, port)
	older.Key.Name = "older"
	younger := serviceWeb(model.Cluster, []netip.Addr{ipv4}, port)
	younger.Created = older.Created.AddDate(1, 0, 0)
	if routes := DefaultDomain.Routes(younger, frontends(t, younger, older)); len(routes) != 0 {
		t.Errorf("a Service without an address has routes: %v", routes)
	}
}

func TestEveryLinkOfTheChainIsThere(t *testing.T) {
	s := serviceWeb(model.Local, []netip.Addr{ipv6}, model.Port{Name: "http", Protocol: model.TCP, Port: 80})
	f := frontends(t, s)
	for _, dialled := range []string{"web.default:80", "web.default.svc:http", "web.default.svc.cluster.local:80"} {
		var manager managerpb.HttpConnectionManager
		l := derive[*listenerpb.Listener](t, gcpresource.ListenerType, dialled)
		if err := l.GetApiListener().GetApiListener().UnmarshalTo(&manager); err != nil {
			t.Fatal(err)
		}
		routes := DefaultDomain.Routes(s, f)
		i := slices.IndexFunc(routes, func(r envoy.Resource) bool { return r.Name == manager.GetRds().GetRouteConfigName() })
		if i < 0 {
			t.Fatalf("%s leads to route %s, which does not exist", dialled, manager.GetRds().GetRouteConfigName())
		}
		c := derive[*clusterpb.Cluster](t, gcpresource.ClusterType, clusterOf(t, routes[i]))
		if c.GetType() != clusterpb.Cluster_EDS || c.GetEdsClusterConfig().GetServiceName() != "" {
			t.Errorf("cluster %s has other endpoints than the set of its name", c.GetName())
		}
		if !slices.ContainsFunc(envoy.Resources(f), func(r envoy.Resource) bool {
			return r.TypeURL == gcpresource.EndpointType && r.Name == c.GetName()
		}) {
			t.Errorf("%s leads to assignment %s, which nobody is served", dialled, c.GetName())
		}
	}
}

// derive returns a resource that has to follow from its name.
func derive[M proto.Message](t *testing.T, typeURL, name string) M {
	t.Helper()
	r, ok := DefaultDomain.Derive(typeURL, name)
	m, isM := r.Message.(M)
	if !ok || !isM || r.TypeURL != typeURL || r.Name != name {
		t.Fatalf("%s %q: derived %+v, %t", typeURL, name, r, ok)
	}
	if err := r.Message.(interface{ ValidateAll() error }).ValidateAll(); err != nil {
		t.Errorf("%s %q: %v", typeURL, name, err)
	}
	return m
}

func TestWhatDoesNotExistHasARouteThatMatchesNothing(t *testing.T) {
	for _, dialled := range []string{"nosuch.default:80", "web.default:81", "web", "api.example.org:443"} {
		derive[*listenerpb.Listener](t, gcpresource.ListenerType, dialled)
		only := derive[*routepb.RouteConfiguration](t, gcpresource.RouteType, dialled).GetVirtualHosts()[0].GetRoutes()[0]
		if only.GetMatch().GetPath() != "/" {
			t.Errorf("%s: calls match %v", dialled, only.GetMatch())
		}
		c := derive[*clusterpb.Cluster](t, gcpresource.ClusterType, only.GetRoute().GetCluster())
		if a := derive[*endpointpb.ClusterLoadAssignment](t, gcpresource.EndpointType, c.GetName()); len(a.GetEndpoints()) != 0 {
			t.Errorf("%s leads to endpoints %v", dialled, a)
		}
	}
}

func TestNothingIsDerivedForOthers(t *testing.T) {
	for _, r := range []struct{ typeURL, name string }{
		{gcpresource.ClusterType, "10.96.0.10:80"},
		{gcpresource.ClusterType, "[fd00::1]:80"},
		{gcpresource.ClusterType, "*:30080"},
		{gcpresource.ClusterType, "external-local/10.96.0.10:80"},
		{gcpresource.ClusterType, "default/dns:dns/UDP"},
		{gcpresource.ClusterType, "web.default:80"},
		{gcpresource.EndpointType, "default/web:http/TCP"},
		{gcpresource.ListenerType, "grpc/server?xds.resource.listening_address=0.0.0.0:80"},
		{gcpresource.ListenerType, "xdstp://traffic-director/envoy.config.listener.v3.Listener/web"},
		{gcpresource.ListenerType, strings.Repeat("a", maxName+1)},
		{envoy.FrontendType, "10.96.0.10:80/TCP"},
	} {
		if got, ok := DefaultDomain.Derive(r.typeURL, r.name); ok {
			t.Errorf("%s %q: derived %v", r.typeURL, r.name, got.Message)
		}
	}
}
