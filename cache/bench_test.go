package cache_test

import (
	"fmt"
	"strconv"
	"testing"

	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointpb "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	gcpcache "github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	gcpresource "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	gcpstream "github.com/envoyproxy/go-control-plane/pkg/server/stream/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/fairlead/fairlead/cache"
	"github.com/fairlead/fairlead/translate/model"
)

// fixed is a contribution with one resource, the same for all views.
type fixed struct{ cache.Resource }

func (u fixed) Variant(model.View) string                  { return "" }
func (u fixed) Resources(string) ([]cache.Resource, error) { return []cache.Resource{u.Resource}, nil }

// assignment returns an assignment; each factor is another content.
func assignment(tb testing.TB, name string, factor int) fixed {
	r, err := cache.NewResource(gcpresource.EndpointType, name, &endpointpb.ClusterLoadAssignment{
		ClusterName: name,
		Policy:      &endpointpb.ClusterLoadAssignment_Policy{OverprovisioningFactor: wrapperspb.UInt32(uint32(factor))},
	})
	if err != nil {
		tb.Fatal(err)
	}
	return fixed{r}
}

// benchClient does for one stream with one type what go-control-plane's server does, without the network.
type benchClient struct {
	b         *testing.B
	node      *corepb.Node
	stream    *cache.Stream
	sub       gcpstream.Subscription
	responses chan gcpcache.DeltaResponse
	cancel    func()
}

// subscribe opens a stream that asks for names.
func subscribe(b *testing.B, c *cache.Cache, id string, names []string) *benchClient {
	n := &benchClient{
		b:         b,
		node:      &corepb.Node{Id: id},
		stream:    c.OpenStream(cache.StreamConfig{}),
		sub:       gcpstream.NewDeltaSubscription(names, nil, nil, false),
		responses: make(chan gcpcache.DeltaResponse, 20),
	}
	n.watch(&discoverypb.DeltaDiscoveryRequest{Node: n.node, TypeUrl: gcpresource.EndpointType, ResourceNamesSubscribe: names})
	return n
}

func (n *benchClient) watch(req *discoverypb.DeltaDiscoveryRequest) {
	cancel, err := n.stream.CreateDeltaWatch(req, n.sub, n.responses)
	if err != nil {
		n.b.Fatal(err)
	}
	n.cancel = cancel
}

// exchange takes the response that is there, and acknowledges it.
func (n *benchClient) exchange() {
	response := <-n.responses
	message, err := response.GetDeltaDiscoveryResponse()
	if err != nil {
		n.b.Fatal(err)
	}
	message.Nonce = "1"
	n.sub.SetReturnedResources(response.GetNextVersionMap())
	n.cancel()
	n.watch(&discoverypb.DeltaDiscoveryRequest{Node: n.node, TypeUrl: gcpresource.EndpointType, ResponseNonce: message.GetNonce()})
}

// BenchmarkChange is one endpoint change that every stream is sent and acknowledges, all but gRPC. It should cost in
// proportion to the streams, whatever they subscribe to.
func BenchmarkChange(b *testing.B) {
	for _, streams := range []int{100, 1000} {
		for _, names := range []int{100, 1000, 10000} {
			for _, wildcard := range []bool{true, false} {
				if !wildcard && streams*names > 1_000_000 {
					continue // go-control-plane's sets of names alone would take gigabytes.
				}
				b.Run(fmt.Sprintf("streams=%d/names=%d/wildcard=%t", streams, names, wildcard), func(b *testing.B) {
					benchmarkChange(b, streams, names, wildcard)
				})
			}
		}
	}
}

func benchmarkChange(b *testing.B, streams, names int, wildcard bool) {
	c := cache.New(cache.Config{})
	units, all := map[string]cache.Contribution{}, []string{}
	for i := range names {
		name := "default/service-" + strconv.Itoa(i) + ":http/TCP"
		units[name] = assignment(b, name, 1)
		all = append(all, name)
	}
	changing := all[0]
	c.Publish(cache.Update{Contributions: units})
	if wildcard {
		all = []string{"*"}
	}
	clients := make([]*benchClient, streams)
	for i := range clients {
		clients[i] = subscribe(b, c, "node-"+strconv.Itoa(i), all)
		clients[i].exchange()
	}
	factor := 1
	b.ReportAllocs()
	for b.Loop() {
		factor++
		c.Publish(cache.Update{Contributions: map[string]cache.Contribution{changing: assignment(b, changing, factor)}})
		for _, n := range clients {
			n.exchange()
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*streams), "ns/stream")
}

// BenchmarkFirstResponse is a client that subscribes to 10,000 resources, all but gRPC.
func BenchmarkFirstResponse(b *testing.B) {
	c := cache.New(cache.Config{})
	units := map[string]cache.Contribution{}
	for i := range 10000 {
		name := "default/service-" + strconv.Itoa(i) + ":http/TCP"
		units[name] = assignment(b, name, 1)
	}
	c.Publish(cache.Update{Contributions: units})
	b.ReportAllocs()
	for b.Loop() {
		n := subscribe(b, c, "node", []string{"*"})
		n.exchange()
		n.stream.Close()
	}
}
