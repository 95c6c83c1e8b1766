package cache_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"

	clusterpb "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointpb "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/fairlead/fairlead/cache"
	"github.com/fairlead/fairlead/translate/frontendpb"
	"github.com/fairlead/fairlead/translate/model"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestWalk lets Services and nodes change at random under clients that reconnect, reject and dawdle at random, all over
// go-control-plane's own server, and checks two things. Each client ends up with exactly what its view sees, rendered
// anew without a cache. And along the way the promises about order hold, of which walkClient keeps count.
func TestWalk(t *testing.T) {
	for seed := range uint64(12) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			walk(t, rand.New(rand.NewPCG(seed, 0)))
		})
	}
}

// world is what is published.
type world struct {
	t     *testing.T
	units map[string]cache.Contribution
	views map[string]*model.View
}

func walk(t *testing.T, random *rand.Rand) {
	c := cache.New(cache.Config{})
	w := world{t: t, units: map[string]cache.Contribution{}, views: map[string]*model.View{}}
	ctx, cancel := context.WithCancel(context.Background())
	var clients []*walkClient
	defer func() {
		cancel()
		for _, n := range clients {
			<-n.done
		}
	}()
	for i := range 6 {
		n := newWalkClient(t, c, i, random.Uint64())
		clients = append(clients, n)
		go n.run(ctx)
	}

	for range 400 {
		update := w.change(random)
		c.Publish(update)
		if random.IntN(4) == 0 {
			// Not a wait for anything: clients get a chance to be at every possible point.
			for range random.IntN(300) {
				runtime.Gosched()
			}
		}
	}
	for _, n := range clients {
		n.settle(func(got map[resource][]byte) string { return w.difference(n.id, got) })
	}
}

// change changes the world at random, and returns what to publish.
func (w *world) change(random *rand.Rand) cache.Update {
	update := cache.Update{Contributions: map[string]cache.Contribution{}, Views: map[string]*model.View{}}
	for range 1 + random.IntN(3) {
		number := random.IntN(8)
		id := fmt.Sprint("service-", number)
		if random.IntN(4) == 0 {
			update.Contributions[id] = nil
			delete(w.units, id)
			continue
		}
		u := walkUnit{t: w.t, number: number, addresses: random.IntN(4), content: random.IntN(3), zoned: random.IntN(2) == 0, only: random.IntN(5) == 0}
		update.Contributions[id], w.units[id] = u, u
	}
	if random.IntN(5) == 0 {
		node := fmt.Sprint("n", random.IntN(6))
		if random.IntN(3) == 0 {
			update.Views[node] = nil
			delete(w.views, node)
		} else {
			update.Views[node] = &model.View{Node: node, Zone: fmt.Sprint("z", random.IntN(3))}
			w.views[node] = update.Views[node]
		}
	}
	return update
}

// difference says how what a client has differs from what it should have; empty if it does not.
func (w *world) difference(node string, got map[resource][]byte) string {
	view := model.View{Node: node}
	if v := w.views[node]; v != nil {
		view = *v
	}
	want := map[resource][]byte{}
	for _, u := range w.units {
		resources, _ := u.Resources(u.Variant(view)) // Which never fails.
		for _, r := range resources {
			want[resource{r.TypeURL, r.Name}] = r.Body.GetValue()
		}
	}
	for r, body := range want {
		if held, ok := got[r]; !ok || !bytes.Equal(held, body) {
			return fmt.Sprintf("%s: %v is missing or old", node, r)
		}
	}
	for r := range got {
		if _, ok := want[r]; !ok {
			return fmt.Sprintf("%s: %v should be gone", node, r)
		}
	}
	return ""
}

// walkUnit is a Service with some addresses that share one assignment.
type walkUnit struct {
	t                          *testing.T
	number, addresses, content int
	zoned                      bool // The content of the assignment differs between zones.
	only                       bool // The Service is seen in zone z1 alone.
}

// Variant is a part of cache.Unit.
func (u walkUnit) Variant(v model.View) string {
	if u.zoned || u.only {
		return v.Zone
	}
	return ""
}

// Resources is a part of cache.Contribution.
func (u walkUnit) Resources(variant string) ([]cache.Resource, error) {
	if u.addresses == 0 || u.only && variant != "z1" {
		return nil, nil
	}
	name := fmt.Sprint("assignment-", u.number)
	factor := 1 + u.content
	if u.zoned {
		factor += 10 * slices.Index([]string{"", "z0", "z1", "z2"}, variant)
	}
	all := []cache.Resource{u.resource(assignments, name, &endpointpb.ClusterLoadAssignment{
		ClusterName: name, Policy: &endpointpb.ClusterLoadAssignment_Policy{OverprovisioningFactor: wrapperspb.UInt32(uint32(factor))},
	})}
	for i := range u.addresses {
		address := fmt.Sprintf("10.%d.0.%d", u.number, i)
		cluster := &clusterpb.Cluster{
			Name:                 address,
			ClusterDiscoveryType: &clusterpb.Cluster_Type{Type: clusterpb.Cluster_EDS},
			EdsClusterConfig:     &clusterpb.Cluster_EdsClusterConfig{ServiceName: name},
		}
		all = append(all, u.resource(clusters, address, cluster), u.resource(frontends, address, &frontendpb.Frontend{Service: name}))
	}
	return all, nil
}

func (u walkUnit) resource(typeURL, name string, m proto.Message) cache.Resource {
	r, err := cache.NewResource(typeURL, name, m)
	if err != nil {
		u.t.Error(err)
	}
	return r
}
