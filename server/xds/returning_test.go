package xds

import (
	"fmt"
	"io"
	"maps"
	"runtime"
	"testing"
	"time"

	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointpb "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	gcpresource "github.com/envoyproxy/go-control-plane/pkg/resource/v3"

	"github.com/fairlead/fairlead/cache"
)

// silent is a stream of a client that sends one request and then nothing more.
type silent struct {
	*frames
	first chan *discoverypb.DeltaDiscoveryRequest
}

func (silent) Send(*discoverypb.DeltaDiscoveryResponse) error { return nil }
func (s silent) Recv() (*discoverypb.DeltaDiscoveryRequest, error) {
	select {
	case m := <-s.first:
		return m, nil
	case <-s.ctx.Done():
		return nil, io.EOF
	}
}

// TestReturningClientsCostNothing: of what a client says that it has, nothing stays once it is compared.
//
//  1. Clients come back that have everything, thousands of resources: they count as up to date, and are sent nothing.
//  2. The heap has a few KB for each of them.
func TestReturningClientsCostNothing(t *testing.T) {
	const clients, resources, most = 20, 5000, 64 << 10
	c, contributions, versions := cache.New(cache.Config{}), map[string]cache.Contribution{}, map[string]string{}
	for i := range resources {
		name := fmt.Sprintf("default/service-%d:http/TCP", i)
		r, err := cache.NewResource(gcpresource.EndpointType, name, &endpointpb.ClusterLoadAssignment{ClusterName: name})
		if err != nil {
			t.Fatal(err)
		}
		contributions[name], versions[name] = assignment{r}, r.Version
	}
	c.Publish(cache.Update{Contributions: contributions})
	server, done := New(Config{Cache: c}), make(chan error, clients+1)
	returns := func(node string) {
		has := maps.Clone(versions) // As each request is decoded to a map of its own.
		s := silent{&frames{ctx: t.Context()}, make(chan *discoverypb.DeltaDiscoveryRequest, 1)}
		s.first <- &discoverypb.DeltaDiscoveryRequest{
			Node: &corepb.Node{Id: node}, TypeUrl: gcpresource.EndpointType,
			ResourceNamesSubscribe: []string{"*"}, InitialResourceVersions: has,
		}
		go func() { done <- handler{server, t.Context()}.DeltaStreamHandler(s, "") }()
		for late := time.Now().Add(10 * time.Second); c.Applied(node, gcpresource.EndpointType) != 1; runtime.Gosched() {
			if time.Now().After(late) {
				t.Fatalf("%s does not count as up to date", node)
			}
		}
	}
	returns("first") // The resources are rendered for the first client that sees them.
	before := heap()
	for i := range clients {
		returns(fmt.Sprint("n", i))
	}
	each := (heap() - before) / clients
	t.Logf("%d KB for each client", each>>10)
	if each > most {
		t.Errorf("%d KB of heap for each client that returned, want at most %d", each>>10, most>>10)
	}
	if len(done) > 0 {
		t.Errorf("a stream has ended: %v", <-done)
	}
	runtime.KeepAlive(versions)
}

// heap returns the live heap, in bytes.
func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
