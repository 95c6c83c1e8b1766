package translate

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"

	"github.com/fairlead/fairlead/translate/model"
)

// The size of a large cluster.
const (
	benchServices  = 10_000
	benchEndpoints = 10 // Of each Service.
	benchNodes     = 1000
)

// benchObjects returns Services with their slices.
func benchObjects() []model.Object {
	var all []model.Object
	for i := range benchServices {
		name := fmt.Sprintf("service-%d", i)
		s := testService(name)
		s.ClusterIPs = []netip.Addr{netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)})}
		all = append(all, serviceObject(s), sliceObject(benchSlice(i, 0)))
	}
	return all
}

// benchSlice returns the slice of Service i; another round gives it another first endpoint.
func benchSlice(i, round int) *model.EndpointSlice {
	slice := &model.EndpointSlice{
		Namespace: "default",
		Name:      fmt.Sprintf("service-%d-x", i),
		Service:   model.ServiceKey{Namespace: "default", Name: fmt.Sprintf("service-%d", i)},
		Family:    model.IPv4,
		Ports:     []model.SlicePort{{Name: "http", Protocol: model.TCP, Port: 8080}},
	}
	for j := range benchEndpoints {
		n := i*benchEndpoints + j
		if j == 0 {
			n += round % 2 * benchServices * benchEndpoints
		}
		slice.Endpoints = append(slice.Endpoints, model.SliceEndpoint{
			Address: netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)}),
			Node:    fmt.Sprintf("node-%d", n%benchNodes),
			Zone:    string(rune('a' + n%3)),
			Ready:   true,
			Serving: true,
		})
	}
	return slice
}

func load(objects []model.Object) *World {
	w := NewWorld()
	for _, o := range objects {
		w.Set(o)
	}
	return w
}

// BenchmarkLoad is 10,000 Services with 10 endpoints each, from objects to what a node's resources are made of.
func BenchmarkLoad(b *testing.B) {
	objects := benchObjects()
	var before, after runtime.MemStats
	for b.Loop() {
		runtime.GC()
		runtime.ReadMemStats(&before)
		w := load(objects)
		plans := make([]*Plan, 0, benchServices)
		for _, key := range w.Changed() {
			plan := w.Plan(key)
			if len(plan.Frontends(plan.Variant(model.View{Node: "node-1", Zone: "a"}))) != 1 {
				b.Fatalf("%s has no frontend", key)
			}
			plans = append(plans, plan)
		}
		b.StopTimer()
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/(1<<20), "MiB-held")
		runtime.KeepAlive(plans)
		runtime.KeepAlive(w)
		b.StartTimer()
	}
}

// BenchmarkChange is one endpoint that changes among 10,000 Services, until the new frontends of the one it belongs to.
func BenchmarkChange(b *testing.B) {
	w := load(benchObjects())
	w.Changed()
	for round := 1; b.Loop(); round++ {
		w.Set(sliceObject(benchSlice(round%benchServices, round)))
		for _, key := range w.Changed() {
			plan := w.Plan(key)
			plan.Frontends(plan.Variant(model.View{Node: "node-1", Zone: "a"}))
		}
		if problems := w.Problems(); len(problems) > 0 {
			b.Fatal(problems)
		}
	}
}

// BenchmarkTable is the whole forwarding table of one node, as fairlead translate makes it.
func BenchmarkTable(b *testing.B) {
	w := load(benchObjects())
	for b.Loop() {
		if len(w.Table("node-1").Frontends) != benchServices {
			b.Fatal("not all Services are in the table")
		}
	}
}
