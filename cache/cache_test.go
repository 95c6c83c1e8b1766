package cache_test

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"

	clusterpb "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	gcpcache "github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	gcpstream "github.com/envoyproxy/go-control-plane/pkg/server/stream/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/fairlead/fairlead/cache"
	"github.com/fairlead/fairlead/translate/model"
)

// The protocol is proven in test/ads, and the whole under random changes by TestWalk. Here is what those do not show.

// counting is a contribution that differs between zones and counts how often each variant is rendered.
type counting struct {
	fixed
	rendered map[string]int
}

func (u counting) Variant(v model.View) string { return v.Zone }
func (u counting) Resources(variant string) ([]cache.Resource, error) {
	u.rendered[variant]++
	return u.fixed.Resources(variant)
}

// connect opens a stream of a node that asks for all assignments, and returns it with its channel.
func connect(t *testing.T, c *cache.Cache, node, zone string) (*cache.Stream, chan gcpcache.DeltaResponse) {
	t.Helper()
	stream, responses := c.OpenStream(cache.StreamConfig{}), make(chan gcpcache.DeltaResponse, 20)
	names := []string{"*"}
	req := &discoverypb.DeltaDiscoveryRequest{
		Node: &corepb.Node{Id: node, Locality: &corepb.Locality{Zone: zone}}, TypeUrl: assignments, ResourceNamesSubscribe: names,
	}
	if _, err := stream.CreateDeltaWatch(req, gcpstream.NewDeltaSubscription(names, nil, nil, false), responses); err != nil {
		t.Fatal(err)
	}
	return stream, responses
}

// body returns the bytes of the only resource of a response.
func body(t *testing.T, responses chan gcpcache.DeltaResponse) []byte {
	t.Helper()
	m, err := (<-responses).GetDeltaDiscoveryResponse()
	if err != nil || len(m.GetResources()) != 1 {
		t.Fatalf("response %v, error %v, want one resource", m, err)
	}
	return m.GetResources()[0].GetResource().GetValue()
}

// TestVariantsAreRenderedOnce: once per variant, when the first view needs it, and anew when the last has gone.
func TestVariantsAreRenderedOnce(t *testing.T) {
	c := cache.New(cache.Config{})
	u := counting{assignment(t, "default/web:http/TCP", 1), map[string]int{}}
	c.Publish(cache.Update{Contributions: map[string]cache.Contribution{"default/web": u}})
	want := map[string]int{}
	check := func(when string) {
		t.Helper()
		if !maps.Equal(u.rendered, want) {
			t.Fatalf("%s: rendered %v, want %v", when, u.rendered, want)
		}
	}
	check("no client")

	one, first := connect(t, c, "n1", "z1")
	two, second := connect(t, c, "n2", "z1")
	want["z1"] = 1
	check("two clients of a zone")
	if a, b := body(t, first), body(t, second); &a[0] != &b[0] {
		t.Error("two streams have a copy each of the same resource")
	}
	connect(t, c, "n3", "z2")
	want["z2"] = 1
	check("a client of another zone")

	one.Close()
	three, _ := connect(t, c, "n1", "z1")
	check("a client comes back while another has its zone")
	two.Close()
	three.Close()
	connect(t, c, "n1", "z1")
	want["z1"] = 2
	check("a client comes back to an empty zone")
}

// TestSotwResponseIsDropped: go-control-plane's SotW server drops a response that it has not sent when a request of the
// type arrives. The content has to come with the next.
func TestSotwResponseIsDropped(t *testing.T) {
	c := cache.New(cache.Config{})
	names := []string{"default/web:http/TCP"}
	publish := func(factor int) {
		c.Publish(cache.Update{Contributions: map[string]cache.Contribution{"default/web": assignment(t, names[0], factor)}})
	}
	publish(1)
	stream, responses := c.OpenStream(cache.StreamConfig{}), make(chan gcpcache.Response, 10)
	defer stream.Close()
	sub := gcpstream.NewSotwSubscription(names, false)
	request := func(nonce string) func() {
		t.Helper()
		cancel, err := stream.CreateWatch(&discoverypb.DiscoveryRequest{
			Node: &corepb.Node{Id: "n1"}, TypeUrl: assignments, ResourceNames: names, ResponseNonce: nonce,
		}, sub, responses)
		if err != nil {
			t.Fatal(err)
		}
		return cancel
	}
	request("")
	m, err := (<-responses).GetDiscoveryResponse()
	if err != nil {
		t.Fatal(err)
	}
	m.Nonce = "1"
	cancel := request("1")

	publish(2)
	<-responses // Dropped.
	cancel()
	request("")
	select {
	case r := <-responses:
		if m, err := r.GetDiscoveryResponse(); err != nil || len(m.GetResources()) != 1 {
			t.Errorf("response %v, error %v, want the assignment", m, err)
		}
	default:
		t.Error("the change is lost")
	}
	if got := c.Applied("n1", assignments); got != 1 {
		t.Errorf("Applied = %d, want 1: the change was not acknowledged", got)
	}
}

// TestDeriveWithoutTheLock: what follows from a client's names is made while others may use the cache, and once.
func TestDeriveWithoutTheLock(t *testing.T) {
	var c *cache.Cache
	derived := map[string]int{}
	c = cache.New(cache.Config{Derive: func(_, name string) (cache.Resource, bool) {
		c.Status() // Takes the lock: this waits forever if the caller has it.
		derived[name]++
		return assignment(t, name, 1).Resource, name != "nothing"
	}})
	c.Publish(cache.Update{})
	stream, responses := c.OpenStream(cache.StreamConfig{}), make(chan gcpcache.DeltaResponse, 20)
	defer stream.Close()
	sub := gcpstream.NewDeltaSubscription(nil, nil, nil, false)
	ask := func(names ...string) *discoverypb.DeltaDiscoveryResponse {
		t.Helper()
		sub.UpdateResourceSubscriptions(names, nil)
		req := &discoverypb.DeltaDiscoveryRequest{Node: &corepb.Node{Id: "n1"}, TypeUrl: assignments, ResourceNamesSubscribe: names}
		if _, err := stream.CreateDeltaWatch(req, sub, responses); err != nil {
			t.Fatal(err)
		}
		m, err := (<-responses).GetDeltaDiscoveryResponse()
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	for _, step := range []struct {
		names           []string
		found, notFound int
	}{
		{[]string{"a", "nothing"}, 1, 1},
		{[]string{"a", "b"}, 2, 0},
		{[]string{"nothing"}, 0, 1},
	} {
		if m := ask(step.names...); len(m.GetResources()) != step.found || len(m.GetRemovedResources()) != step.notFound {
			t.Errorf("%q: %d found, %d not, want %d and %d", step.names, len(m.GetResources()), len(m.GetRemovedResources()), step.found, step.notFound)
		}
	}
	if want := map[string]int{"a": 1, "b": 1, "nothing": 1}; !maps.Equal(derived, want) {
		t.Errorf("derived %v, want %v", derived, want)
	}
}

// TestNewResource: what cannot be served is refused with the name and the reason.
func TestNewResource(t *testing.T) {
	good := &clusterpb.Cluster{Name: "a"}
	for _, test := range []struct {
		what, typeURL, name string
		message             proto.Message
		want                string // A part of the error, empty for none.
	}{
		{"a good one", clusters, "a", good, ""},
		{"no name", clusters, "", good, "no name"},
		{"another type", assignments, "a", good, `"a": message is a type.googleapis.com/envoy.config.cluster.v3.Cluster`},
		{"invalid", clusters, "a", &clusterpb.Cluster{Name: "a", ConnectTimeout: durationpb.New(-1)}, "ConnectTimeout"},
	} {
		_, err := cache.NewResource(test.typeURL, test.name, test.message)
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: error %v, want one with %q", test.what, err, test.want)
		}
	}
}

// TestReceivedResource: a resource passes through with its version, so that clients may change between who made it and
// who passed it on.
func TestReceivedResource(t *testing.T) {
	made := assignment(t, "a", 1).Resource
	sent := &discoverypb.Resource{Name: made.Name, Version: made.Version, Resource: made.Body}
	got, err := cache.ReceivedResource(sent)
	if err != nil || got.TypeURL != made.TypeURL || got.Name != "a" || got.Version != made.Version || !slices.Equal(got.Body.GetValue(), made.Body.GetValue()) {
		t.Errorf("received %+v, error %v, want %+v", got, err, made)
	}
	for _, broken := range []*discoverypb.Resource{
		{Version: "1", Resource: made.Body}, {Name: "a", Resource: made.Body}, {Name: "a", Version: "1"},
	} {
		if _, err := cache.ReceivedResource(broken); err == nil {
			t.Errorf("no error for %v", broken)
		}
	}
}

// broken is a contribution that cannot be rendered for one zone.
type broken struct{ fixed }

func (broken) Variant(v model.View) string { return v.Zone }
func (b broken) Resources(variant string) ([]cache.Resource, error) {
	if variant == "z1" {
		return nil, errors.New("bad cluster")
	}
	return b.fixed.Resources(variant)
}

// TestFailures: what cannot be rendered is left out and said to whoever asks, when a client comes that needs it, and no more
// once it is replaced.
func TestFailures(t *testing.T) {
	told := 0
	c := cache.New(cache.Config{Failed: func() { told++ }})
	one := broken{assignment(t, "one", 1)}
	c.Publish(cache.Update{Contributions: map[string]cache.Contribution{"one": one}})
	if f := c.Failures(); len(f) != 0 || told != 0 {
		t.Errorf("%v, told %d times, before any client came", f, told)
	}
	stream, _ := connect(t, c, "n0", "z0")
	defer stream.Close()
	if f := c.Failures(); len(f) != 0 || told != 0 {
		t.Errorf("%v, told %d times, by a client that has everything", f, told)
	}
	stream, _ = connect(t, c, "n1", "z1")
	defer stream.Close()
	if f := c.Failures(); f["one"] == nil || told != 1 {
		t.Errorf("%v, told %d times, want the failure, told once", f, told)
	}
	c.Publish(cache.Update{Contributions: map[string]cache.Contribution{"one": one}})
	if f := c.Failures(); f["one"] == nil || told != 1 {
		t.Errorf("%v, told %d times, after another publish of the same", f, told)
	}
	c.Publish(cache.Update{Contributions: map[string]cache.Contribution{"one": one.fixed}})
	if f := c.Failures(); len(f) != 0 {
		t.Errorf("%v after the contribution was replaced", f)
	}
}
