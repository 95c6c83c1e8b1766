package ads

import (
	"net/netip"
	"testing"

	"github.com/fairlead/fairlead/cache"
	"github.com/fairlead/fairlead/translate"
	"github.com/fairlead/fairlead/translate/envoy"
	"github.com/fairlead/fairlead/translate/grpc"
	"github.com/fairlead/fairlead/translate/model"
)

const (
	clusters    = envoy.ClusterType
	assignments = envoy.AssignmentType
	listeners   = envoy.ListenerType
	frontends   = envoy.FrontendType
	nodes       = envoy.NodeType
	routes      = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
)

// serviceUnit is a Service as the cache takes it.
type serviceUnit struct {
	t    *testing.T
	plan *translate.Plan
}

func (u serviceUnit) Variant(v model.View) string { return string(u.plan.Variant(v)) }

func (u serviceUnit) Resources(variant string) ([]cache.Resource, error) {
	var resources []cache.Resource
	frontends := u.plan.Frontends(translate.Variant(variant))
	for _, r := range append(envoy.Resources(frontends), grpc.DefaultDomain.Routes(u.plan.Service(), frontends)...) {
		resource, err := cache.NewResource(r.TypeURL, r.Name, r.Message)
		if err != nil {
			u.t.Errorf("%s: %v", r.Name, err)
		}
		resources = append(resources, resource)
	}
	return resources, nil
}

// service is a Service and its endpoints, for units.
type service struct {
	name      string
	ips       []string // ClusterIP, then external IPs.
	local     bool     // internalTrafficPolicy Local.
	endpoints []endpoint
}

type endpoint struct{ ip, node, zone, hint string }

// units returns the units of Services that are all there is.
func units(t *testing.T, services ...service) map[string]cache.Contribution {
	t.Helper()
	w := translate.NewWorld()
	for _, s := range services {
		w.Set(model.Object{Key: model.ObjectKey{Kind: model.KindService, Namespace: "default", Name: s.name}, Service: s.object()})
		w.Set(model.Object{Key: model.ObjectKey{Kind: model.KindEndpointSlice, Namespace: "default", Name: s.name + "-1"}, Slice: s.slice()})
	}
	for _, p := range w.Problems() {
		t.Fatalf("%+v", p)
	}
	all := map[string]cache.Contribution{}
	for _, key := range w.Changed() {
		if plan := w.Plan(key); plan != nil {
			all[key.String()] = serviceUnit{t, plan}
		}
	}
	if len(all) != len(services) {
		t.Fatalf("%d units of %d Services", len(all), len(services))
	}
	return all
}

func (s service) object() *model.Service {
	o := &model.Service{
		Key:                   model.ServiceKey{Namespace: "default", Name: s.name},
		Ports:                 []model.Port{{Name: "http", Protocol: model.TCP, Port: 80}},
		ClusterIPs:            []netip.Addr{netip.MustParseAddr(s.ips[0])},
		InternalTrafficPolicy: model.Cluster,
		ExternalTrafficPolicy: model.Cluster,
	}
	if s.local {
		o.InternalTrafficPolicy = model.Local
	}
	for _, ip := range s.ips[1:] {
		o.ExternalIPs = append(o.ExternalIPs, netip.MustParseAddr(ip))
	}
	return o
}

func (s service) slice() *model.EndpointSlice {
	o := &model.EndpointSlice{
		Namespace: "default",
		Name:      s.name + "-1",
		Service:   model.ServiceKey{Namespace: "default", Name: s.name},
		Family:    model.IPv4,
		Ports:     []model.SlicePort{{Name: "http", Protocol: model.TCP, Port: 8080}},
	}
	for _, e := range s.endpoints {
		converted := model.SliceEndpoint{Address: netip.MustParseAddr(e.ip), Node: e.node, Zone: e.zone, Ready: true, Serving: true}
		if e.hint != "" {
			converted.ZoneHints = []string{e.hint}
		}
		o.Endpoints = append(o.Endpoints, converted)
	}
	return o
}

// web is a Service with one endpoint for each address.
func web(ips ...string) service {
	s := service{name: "web", ips: []string{"10.96.0.10"}}
	for _, ip := range ips {
		s.endpoints = append(s.endpoints, endpoint{ip: ip, node: "n1", zone: "z1"})
	}
	return s
}

// The names of what a Service web contributes.
const (
	webCluster    = "10.96.0.10:80"
	webAssignment = "default/web:http/TCP"
	webFrontend   = "10.96.0.10:80/TCP"
)
