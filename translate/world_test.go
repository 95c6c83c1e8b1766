package translate

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/translate/model"
)

// testService returns a Service in namespace default with one port, http.
func testService(name string, clusterIPs ...string) *model.Service {
	s := &model.Service{
		Key:                   model.ServiceKey{Namespace: "default", Name: name},
		Ports:                 []model.Port{{Name: "http", Protocol: model.TCP, Port: 80}},
		InternalTrafficPolicy: model.Cluster,
		ExternalTrafficPolicy: model.Cluster,
	}
	for _, ip := range clusterIPs {
		s.ClusterIPs = append(s.ClusterIPs, netip.MustParseAddr(ip))
	}
	return s
}

// testSlice returns a slice of a Service's endpoints, written as for endpoint.
func testSlice(t *testing.T, name, service string, endpoints ...string) *model.EndpointSlice {
	t.Helper()
	s := &model.EndpointSlice{
		Namespace: "default",
		Name:      name,
		Service:   model.ServiceKey{Namespace: "default", Name: service},
		Family:    model.IPv4,
		Ports:     []model.SlicePort{{Name: "http", Protocol: model.TCP, Port: 8080}},
	}
	for _, e := range endpoints {
		s.Endpoints = append(s.Endpoints, endpoint(t, e))
	}
	return s
}

func serviceObject(s *model.Service) model.Object {
	return model.Object{Key: model.ObjectKey{Kind: model.KindService, Namespace: s.Key.Namespace, Name: s.Key.Name}, Service: s}
}

func sliceObject(s *model.EndpointSlice) model.Object {
	return model.Object{Key: model.ObjectKey{Kind: model.KindEndpointSlice, Namespace: s.Namespace, Name: s.Name}, Slice: s}
}

func TestVariant(t *testing.T) {
	n1a := model.View{Node: "n1", Zone: "a"}
	for _, tc := range []struct {
		name      string
		change    func(*model.Service)
		endpoints []string
		view      model.View
		want      Variant
	}{
		{"nothing differs between nodes", nil, []string{"1 ready on=n1", "2 ready on=n2"}, n1a, ""},
		{"no endpoints", nil, nil, n1a, ""},
		{"zone hints decide", nil, []string{"1 ready on=n1 zone=a", "2 ready on=n2 zone=b"}, n1a, "/a"},
		{"zone hints, none for this zone", nil, []string{"1 ready zone=b", "2 ready zone=c"}, n1a, ""},
		{"zone hints switched off", nil, []string{"1 ready zone=a", "2 ready"}, n1a, ""},
		{"zone hints of endpoints that are not ready", nil, []string{"1 draining zone=a", "2 unready zone=b"}, n1a, ""},
		{"node hints decide, and the zone does not matter", nil, []string{"1 ready node=n1 zone=a", "2 ready node=n2 zone=a"}, n1a, "n1/"},
		{"node hints, none for this node, so the zone's", nil, []string{"1 ready node=n3 zone=a", "2 ready node=n2 zone=b"}, n1a, "/a"},
		{"internal policy Local, endpoints here", internalLocal, []string{"1 ready on=n1", "2 ready on=n2"}, n1a, "n1/"},
		{"internal policy Local, none here", internalLocal, []string{"1 ready on=n3", "2 ready on=n2"}, n1a, ""},
		{"internal policy Local, only useless ones here", internalLocal, []string{"1 unready on=n1", "2 gone on=n1", "3 ready on=n2"}, n1a, ""},
		{"internal policy Local, draining ones here", internalLocal, []string{"1 draining on=n1", "3 ready on=n2"}, n1a, "n1/"},
		{"internal policy Local heeds no hints", internalLocal, []string{"1 ready zone=a", "2 ready zone=b"}, n1a, ""},
		{"external policy Local, nothing external", externalLocal, []string{"1 ready on=n1"}, n1a, ""},
		{"external policy Local, endpoints here and hints", externalLocalNodePort, []string{"1 ready on=n1 zone=a", "2 ready zone=b"}, n1a, "n1/a"},
		{"external policy Local, none here, and hints", externalLocalNodePort, []string{"1 ready on=n2 zone=a", "2 ready zone=b"}, n1a, "/a"},
		{"no view at all", externalLocalNodePort, []string{"1 ready on=n1 zone=a node=n1", "2 ready"}, model.View{}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := testService("web", "10.96.0.1")
			if tc.change != nil {
				tc.change(s)
			}
			w := NewWorld()
			w.Set(serviceObject(s))
			w.Set(sliceObject(testSlice(t, "web-1", "web", tc.endpoints...)))
			plan := w.Plan(s.Key)
			got := plan.Variant(tc.view)
			if got != tc.want {
				t.Errorf("got variant %q, want %q", got, tc.want)
			}
			if diff := cmp.Diff(frontendTexts(plan.frontendsOf(tc.view)), frontendTexts(plan.Frontends(got))); diff != "" {
				t.Errorf("the view's frontends differ from its variant's (-view +variant):\n%s", diff)
			}
		})
	}
}

func internalLocal(s *model.Service) { s.InternalTrafficPolicy = model.Local }
func externalLocal(s *model.Service) { s.ExternalTrafficPolicy = model.Local }
func externalLocalNodePort(s *model.Service) {
	s.ExternalTrafficPolicy, s.Ports[0].NodePort = model.Local, 30080
}

// frontendTexts returns frontends as text, routes and endpoints included.
func frontendTexts(frontends []model.Frontend) []string {
	var all []string
	for _, f := range frontends {
		var b strings.Builder
		fmt.Fprintf(&b, "%s %s %s", f.Name(), f.Kind, f.ServicePort)
		for o, r := range f.Routes {
			fmt.Fprintf(&b, "; %s %s %s %s", model.Origin(o), r.Verdict, r.Source, r.Set.Name)
			for _, e := range r.Set.Endpoints {
				fmt.Fprintf(&b, " %s", e.AddrPort)
			}
		}
		all = append(all, b.String())
	}
	return all
}

func TestVariantsAreFew(t *testing.T) {
	const nodes = 1000
	w := NewWorld()
	s := testService("web", "10.96.0.1")
	externalLocalNodePort(s)
	w.Set(serviceObject(s))
	w.Set(sliceObject(testSlice(t, "web-1", "web", "1 ready on=n1 zone=a", "2 ready on=n2 zone=b", "3 ready on=n2 zone=b")))
	plan := w.Plan(s.Key)
	got := map[Variant]int{}
	for i := range nodes {
		got[plan.Variant(model.View{Node: fmt.Sprintf("n%d", i), Zone: string(rune('a' + i%3))})]++
	}
	// Two nodes with endpoints, and for all others one variant for each hinted zone and one for the rest.
	want := map[Variant]int{"n1/b": 1, "n2/": 1, "/a": 334, "/b": 332, "": 332}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("views by variant (-want +got):\n%s", diff)
	}
}

func TestChangedIsWhatChanged(t *testing.T) {
	w := NewWorld()
	for i := range 100 {
		name := fmt.Sprintf("s%02d", i)
		w.Set(serviceObject(testService(name, fmt.Sprintf("10.96.0.%d", i+1))))
		w.Set(sliceObject(testSlice(t, name+"-1", name, "1 ready on=n1")))
	}
	if got := len(w.Changed()); got != 100 {
		t.Fatalf("%d Services changed at first, want 100", got)
	}
	web := model.ServiceKey{Namespace: "default", Name: "s42"}
	expect := func(what string, want ...model.ServiceKey) {
		t.Helper()
		if got := w.Changed(); !slices.Equal(got, want) {
			t.Errorf("after %s %v changed, want %v", what, got, want)
		}
	}
	expect("nothing")
	w.Set(sliceObject(testSlice(t, "s42-1", "s42", "1 ready on=n1", "2 ready on=n2")))
	expect("an endpoint more", web)
	again := testSlice(t, "s42-1", "s42", "1 ready on=n1", "2 ready on=n2")
	again.Version = model.ObjectVersion{ResourceVersion: "8", At: time.Unix(8, 0)}
	w.Set(sliceObject(again))
	expect("a write that changes nothing")
	w.Set(sliceObject(testSlice(t, "stray", "nobody", "1 ready")))
	expect("a slice of no Service")
	w.Set(model.Object{Key: model.ObjectKey{Kind: model.KindNode, Name: "n1"}, Node: &model.Node{Name: "n1", Zone: "a"}})
	expect("a node")
	w.Delete(model.ObjectKey{Kind: model.KindEndpointSlice, Namespace: "default", Name: "s42-1"})
	expect("a slice less", web)
	w.Delete(model.ObjectKey{Kind: model.KindEndpointSlice, Namespace: "default", Name: "s42-1"})
	expect("deleting what is not there")
	w.Delete(model.ObjectKey{Kind: model.KindService, Namespace: "default", Name: "s42"})
	expect("the Service's end", web)
	if plan := w.Plan(web); plan != nil {
		t.Errorf("a Service that is gone has a plan")
	}
}

func TestWorldForgets(t *testing.T) {
	w := NewWorld()
	s, slice := serviceObject(testService("web", "10.96.0.1")), sliceObject(testSlice(t, "web-1", "web", "1 ready"))
	s.Problems = []model.Problem{{Object: "Service default/web", Reason: model.InvalidPort, Message: "m"}}
	w.Set(s)
	w.Set(slice)
	w.Set(model.Object{Key: model.ObjectKey{Kind: model.KindNode, Name: "n1"}, Node: &model.Node{Name: "n1"}})
	w.SetProblems("file", []model.Problem{{Object: "file", Reason: model.Unreadable, Message: "m"}})
	if got := len(w.Problems()); got != 2 {
		t.Fatalf("got %d problems, want 2", got)
	}
	w.Delete(s.Key)
	w.Delete(slice.Key)
	w.Delete(model.ObjectKey{Kind: model.KindNode, Name: "n1"})
	w.SetProblems("file", nil)
	w.Changed()
	if n := len(w.services) + len(w.slices) + len(w.nodes) + len(w.claims.contenders) + len(w.claims.contested) + len(w.changed) + len(w.problems) + len(w.large); n != 0 {
		t.Errorf("a World without objects still holds %d things: %+v", n, w)
	}
}

func TestSetNamesItsLastChange(t *testing.T) {
	change := func(object string, second int64) model.ObjectVersion {
		return model.ObjectVersion{Object: object, ResourceVersion: "1", At: time.Unix(second, 0)}
	}
	w := NewWorld()
	s := testService("web", "10.96.0.1")
	s.Version = change("Service default/web", 10)
	one, two, other := testSlice(t, "web-1", "web", "1 ready"), testSlice(t, "web-2", "web", "2 ready"), testSlice(t, "web-6", "web")
	one.Version, two.Version, other.Version = change("one", 30), change("two", 20), change("other family", 40)
	other.Family = model.IPv6
	w.Set(serviceObject(s))
	for _, slice := range []*model.EndpointSlice{one, two, other} {
		w.Set(sliceObject(slice))
	}
	got := w.Plan(s.Key).Frontends("")[0].Routes[model.FromPod].Set.Versions
	if diff := cmp.Diff([]model.ObjectVersion{one.Version}, got); diff != "" {
		t.Errorf("changes (-want +got):\n%s", diff)
	}
}

func TestTooManyEndpoints(t *testing.T) {
	w := NewWorld()
	s := testService("web", "10.96.0.1")
	w.Set(serviceObject(s))
	slice := testSlice(t, "web-1", "web")
	const more = MaxEndpoints + 10
	for i := range more {
		slice.Endpoints = append(slice.Endpoints, model.SliceEndpoint{
			Address: netip.AddrFrom4([4]byte{10, byte(1 + i>>16), byte(i >> 8), byte(i)}), Ready: i >= 10,
		})
	}
	w.Set(sliceObject(slice))
	if got := w.Problems(); len(got) != 0 {
		t.Errorf("as many ready endpoints as fit give problems %v", got)
	}
	ready := *slice
	ready.Endpoints = slices.Clone(slice.Endpoints)
	ready.Endpoints[0].Ready = true
	w.Set(sliceObject(&ready))
	problems := w.Problems()
	if len(problems) != 1 || problems[0].Reason != model.TooManyEndpoints || !strings.Contains(problems[0].Message, "65537") {
		t.Errorf("got problems %v, want one that counts 65537 endpoints", problems)
	}
	endpoints := w.Plan(s.Key).Frontends("")[0].Routes[model.FromPod].Set.Endpoints
	if len(endpoints) != MaxEndpoints || endpoints[0].AddrPort != netip.MustParseAddrPort("10.1.0.0:8080") {
		t.Errorf("got %d endpoints from %s, want the first %d", len(endpoints), endpoints[0].AddrPort, MaxEndpoints)
	}
	w.Set(sliceObject(testSlice(t, "web-1", "web", "1 ready")))
	if len(w.Problems()) != 0 || len(w.large) != 0 {
		t.Errorf("with one endpoint there are problems %v, and the Service counts as large: %v", w.Problems(), w.large)
	}
}

// A write that changes nothing that matters is no change, but it was read: whoever waits for it has to be told.
func TestVersions(t *testing.T) {
	w := NewWorld()
	service, slice := testService("web", "10.96.0.1"), testSlice(t, "web-1", "web", "1 ready")
	service.Version = model.ObjectVersion{Object: "Service default/web", ResourceVersion: "7"}
	for _, version := range []string{"9", "10"} {
		next := *slice
		next.Version = model.ObjectVersion{Object: "EndpointSlice default/web-1", ResourceVersion: version}
		w.Set(serviceObject(service))
		w.Set(sliceObject(&next))
		want := map[string]string{"Service default/web": "7", "EndpointSlice default/web-1": version}
		if diff := cmp.Diff(want, w.Versions(service.Key)); diff != "" {
			t.Errorf("versions (-want +got):\n%s", diff)
		}
		if changed := w.Changed(); (len(changed) == 0) != (version == "10") {
			t.Errorf("version %s: changed %v", version, changed)
		}
	}
	if got := w.Versions(model.ServiceKey{Namespace: "default", Name: "none"}); len(got) != 0 {
		t.Errorf("versions %v of nothing", got)
	}
}
