package translate

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/fairlead/fairlead/translate/model"
)

// manyPorts returns so many ports, of a protocol, with names.
func manyPorts(n int, protocol model.Protocol) (all []model.Port) {
	for i := range n {
		all = append(all, model.Port{Name: fmt.Sprintf("p%d", i), Protocol: protocol, Port: uint16(i + 1)})
	}
	return all
}

func manyAddresses(first string, n int) (all []netip.Addr) {
	for a := netip.MustParseAddr(first); len(all) < n; a = a.Next() {
		all = append(all, a)
	}
	return all
}

// wantProblem checks that a World has one Problem, of a reason and with a text.
func wantProblem(t *testing.T, w *World, reason model.Reason, text string) {
	t.Helper()
	got := w.Problems()
	if len(got) != 1 || got[0].Object != "Service default/web" || got[0].Reason != reason || !strings.Contains(got[0].Message, text) {
		t.Errorf("problems %+v\nwant one of Service default/web, %s: …%s…", got, reason, text)
	}
}

// A Service of some kilobytes that asks for a million frontends has as many as one may have, its cluster IP and node ports
// first, a Problem says what is left out, and other Services have theirs.
func TestTooManyFrontends(t *testing.T) {
	s := testService("web", "10.96.0.1")
	s.Ports = manyPorts(1000, model.TCP)
	for i := range s.Ports {
		s.Ports[i].NodePort = uint16(30000 + i)
	}
	s.ExternalIPs = append(manyAddresses("198.18.0.1", 1000), manyAddresses("198.18.0.1", 1000)...)
	other := testService("other", "10.96.1.1")
	began := time.Now()
	w := load([]model.Object{serviceObject(s), serviceObject(other)})
	plan := w.Plan(s.Key)
	got := map[model.Kind]int{}
	for _, f := range plan.Frontends("") {
		got[f.Kind]++
	}
	if got[model.ClusterIP] != 1000 || got[model.NodePort] != 1000 || got[model.ExternalIP] != MaxFrontends-2000 {
		t.Errorf("got %v, want all cluster IPs and node ports, and %d frontends in all", got, MaxFrontends)
	}
	wantProblem(t, w, model.TooManyFrontends, "are 1002000 frontends, and a Service can have 4096: not forwarded are 997904 of 1000000 of kind ExternalIP")
	if w.Plan(other.Key).Size() != 1 {
		t.Error("the other Service is not forwarded")
	}
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("it took %v", took)
	}
	smaller := testService("web", "10.96.0.1")
	w.Set(serviceObject(smaller))
	if got := w.Problems(); len(got) != 0 || len(w.large) != 0 {
		t.Errorf("of a small Service there are problems %v, and it counts as large: %v", got, w.large)
	}
}

// All ports of a Service share a bound on endpoints.
func TestTooManyEndpointsOfPorts(t *testing.T) {
	const ports, endpoints = 1000, 1000
	s := testService("web", "10.96.0.1")
	s.Ports = manyPorts(ports, model.TCP)
	slice := &model.EndpointSlice{Namespace: "default", Name: "web-1", Service: s.Key, Family: model.IPv4}
	for _, p := range s.Ports {
		slice.Ports = append(slice.Ports, model.SlicePort{Name: p.Name, Protocol: p.Protocol, Port: p.Port})
	}
	for i, a := range manyAddresses("10.244.0.1", endpoints) {
		slice.Endpoints = append(slice.Endpoints, model.SliceEndpoint{Address: a, Ready: i >= 10, Serving: i >= 10})
	}
	w := load([]model.Object{serviceObject(s), sliceObject(slice)})
	for _, f := range w.Plan(s.Key).Frontends("") {
		used := f.Routes[model.FromPod].Set.Endpoints
		if len(used) != MaxServiceEndpoints/ports || used[0].AddrPort.Addr() != slice.Endpoints[10].Address {
			t.Fatalf("%s has %d endpoints from %s, want %d from the first that is ready", f.Name(), len(used), used[0].AddrPort, MaxServiceEndpoints/ports)
		}
	}
	wantProblem(t, w, model.TooManyEndpoints, "1000 of its ports, such as p0 with 990 IPv4 endpoints, have more than the 262 that each of so many")
}

// Source ranges that are too many let nobody in.
func TestTooManySourceRanges(t *testing.T) {
	s := testService("web", "10.96.0.1")
	s.Ports = manyPorts(100, model.TCP)
	s.LoadBalancerIPs = manyAddresses("198.18.0.1", 10)
	var ranges []netip.Prefix
	for _, a := range manyAddresses("203.0.113.0", 100) {
		ranges = append(ranges, netip.PrefixFrom(a, 32))
	}
	s.SourceRanges = map[model.Family][]netip.Prefix{model.IPv4: ranges}
	w := load([]model.Object{serviceObject(s)})
	for _, f := range w.Plan(s.Key).Frontends("") {
		if f.Kind != model.LoadBalancer {
			continue
		}
		if got := f.SourceRanges; got == nil || len(got.Prefixes) != 65 || got.Prefixes[0] != ranges[0] || len(got.Addresses) != 10 {
			t.Fatalf("%s: source ranges %+v, want the first 65 of 100, and the 10 addresses", f.Name(), got)
		}
	}
	wantProblem(t, w, model.TooManySourceRanges, "has 100 IPv4 ranges, and those of all its load balancer's addresses and ports together can be 65536: the last 35")
}
