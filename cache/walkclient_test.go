package cache_test

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	clusterpb "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	gcpresource "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	gcpdelta "github.com/envoyproxy/go-control-plane/pkg/server/delta/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/fairlead/fairlead/cache"
)

const (
	clusters    = gcpresource.ClusterType
	assignments = gcpresource.EndpointType
	frontends   = cache.FrontendType
)

type resource struct{ typeURL, name string }

// walkClient is a client that behaves like an Envoy and an agent in one: it has all clusters and frontends, and the
// assignments that its clusters refer to. What it was promised:
//
//   - It gets nothing that it has, unless it asks.
//   - A cluster that is new or changed is followed by its assignment, without which it would not become active.
//   - There is never a frontend without its cluster.
//
// One that rejects responses at random, good as they are, and then reconnects, ends up with everything too. A cluster that it
// had rejected waits for initial_fetch_timeout in one case: if the stream ends just between the cluster and the assignment that
// the client had accepted before.
type walkClient struct {
	t       *testing.T
	cache   *cache.Cache
	id      string
	rejects bool
	random  *rand.Rand
	done    chan struct{}

	mu      sync.Mutex // Guards what follows, which settle reads.
	has     map[resource]*discoverypb.Resource
	uses    map[string]string // By cluster, the assignment that it refers to.
	warming map[string]bool   // Clusters whose assignment has yet to come.
	cut     map[string]bool   // Those of them that came on an earlier stream, if the client rejects.
	session session
}

// session is the state of one stream.
type session struct {
	queue     []*discoverypb.DeltaDiscoveryRequest
	asked     map[resource]int // How often a name may come although the client has it: once, and what was on its way.
	received  map[string]bool  // By type.
	rejected  bool             // From then on what the server thinks of the client is not what it has.
	remaining int              // Responses until it reconnects.
}

func newWalkClient(t *testing.T, c *cache.Cache, number int, seed uint64) *walkClient {
	return &walkClient{
		t: t, cache: c, id: fmt.Sprint("n", number), rejects: number%3 == 0, random: rand.New(rand.NewPCG(seed, 1)), done: make(chan struct{}),
		has: map[resource]*discoverypb.Resource{}, uses: map[string]string{}, warming: map[string]bool{}, cut: map[string]bool{},
	}
}

// settle waits until the client has what it should have, by difference, and no cluster is warming.
func (n *walkClient) settle(difference func(map[resource][]byte) string) {
	n.t.Helper()
	late := time.After(20 * time.Second)
	for {
		n.mu.Lock()
		got := map[resource][]byte{}
		for r, m := range n.has {
			got[r] = m.GetResource().GetValue()
		}
		why := difference(got)
		for cluster := range n.warming {
			if why == "" && !n.cut[cluster] {
				why = fmt.Sprintf("%s: cluster %s is still warming", n.id, cluster)
			}
		}
		n.mu.Unlock()
		if why == "" {
			return
		}
		select {
		case <-time.After(time.Millisecond):
		case <-late:
			n.t.Fatal(why)
		}
	}
}

// run connects again and again until ctx ends.
func (n *walkClient) run(ctx context.Context) {
	defer close(n.done)
	for ctx.Err() == nil {
		n.connect(ctx)
	}
}

// connect serves one stream: the server's side in a goroutine, the client's here.
func (n *walkClient) connect(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	stream := &pipe{ctx: ctx, requests: make(chan *discoverypb.DeltaDiscoveryRequest), responses: make(chan *discoverypb.DeltaDiscoveryResponse)}
	served := make(chan struct{})
	go func() {
		defer close(served)
		s := n.cache.OpenStream(cache.StreamConfig{})
		defer s.Close()
		legacy := gcpdelta.DeactivateLegacyWildcardForTypes([]string{assignments, frontends})
		if err := gcpdelta.NewServer(ctx, s, nil, legacy).DeltaStreamHandler(stream, ""); err != nil && ctx.Err() == nil {
			n.t.Errorf("%s: the stream ended: %v", n.id, err)
		}
	}()
	n.start()
	n.exchange(stream)
	cancel()
	<-served
}

// start queues the first requests of a stream.
func (n *walkClient) start() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.rejects {
		maps.Copy(n.cut, n.warming)
	}
	n.session = session{asked: map[resource]int{}, received: map[string]bool{}, remaining: 3 + n.random.IntN(60)}
	all := [][]string{nil, {"*"}}[n.random.IntN(2)] // The legacy wildcard, and the explicit one.
	n.request(clusters, all)
	if names := n.wanted(); len(names) > 0 {
		n.request(assignments, names)
	}
	n.request(frontends, []string{"*"})
}

// request queues the first request of a type on a stream.
func (n *walkClient) request(typeURL string, names []string) {
	versions := map[string]string{}
	for r, m := range n.has {
		if r.typeURL == typeURL {
			versions[r.name] = m.GetVersion()
		}
	}
	n.session.received[typeURL] = false
	n.session.queue = append(n.session.queue, &discoverypb.DeltaDiscoveryRequest{
		Node: &corepb.Node{Id: n.id}, TypeUrl: typeURL, ResourceNamesSubscribe: names, InitialResourceVersions: versions,
	})
}

// wanted returns the assignments that the clusters refer to.
func (n *walkClient) wanted() []string {
	return slices.Compact(slices.Sorted(maps.Values(n.uses)))
}

// exchange sends what is queued and takes what comes, until the client wants to reconnect or the stream ends.
func (n *walkClient) exchange(stream *pipe) {
	for n.session.remaining > 0 {
		var out chan *discoverypb.DeltaDiscoveryRequest
		var head *discoverypb.DeltaDiscoveryRequest
		var impatient <-chan time.Time
		if len(n.session.queue) > 0 && n.random.IntN(3) > 0 {
			out, head = stream.requests, n.session.queue[0]
		}
		if n.session.rejected || len(n.session.queue) > 0 && out == nil {
			impatient = time.After(time.Duration(n.random.IntN(200)) * time.Microsecond)
		}
		select {
		case <-stream.ctx.Done():
			return
		case out <- head:
			n.session.queue = n.session.queue[1:]
		case m := <-stream.responses:
			n.session.remaining--
			n.take(m)
		case <-impatient:
			if n.session.rejected && len(n.session.queue) == 0 {
				return
			}
		}
	}
}

// take takes a response in, or rejects it.
func (n *walkClient) take(m *discoverypb.DeltaDiscoveryResponse) {
	n.mu.Lock()
	defer n.mu.Unlock()
	answer := &discoverypb.DeltaDiscoveryRequest{TypeUrl: m.GetTypeUrl(), ResponseNonce: m.GetNonce()}
	if n.rejects && n.random.IntN(30) == 0 {
		answer.ErrorDetail = status.New(codes.InvalidArgument, "no").Proto()
		n.session.rejected = true
		n.session.queue = append(n.session.queue, answer)
		return
	}
	before := n.wanted()
	for _, r := range m.GetResources() {
		n.add(m.GetTypeUrl(), r)
	}
	for _, name := range m.GetRemovedResources() {
		n.remove(m.GetTypeUrl(), name)
	}
	n.session.received[m.GetTypeUrl()] = true
	n.session.queue = append(n.session.queue, answer)
	if m.GetTypeUrl() == clusters {
		n.follow(before)
	}
}

// add takes a resource in.
func (n *walkClient) add(typeURL string, r *discoverypb.Resource) {
	id := resource{typeURL, r.GetName()}
	trusted := !n.session.rejected
	held := n.has[id]
	if typeURL == assignments && !slices.Contains(n.wanted(), r.GetName()) {
		return // It was on its way when the client unsubscribed.
	}
	needed := typeURL == assignments && n.warms(r.GetName())
	if trusted && held != nil && held.GetVersion() == r.GetVersion() && n.session.asked[id] == 0 && !needed {
		n.t.Errorf("%s: %v was sent again without being asked for", n.id, id)
	}
	n.session.asked[id] = max(0, n.session.asked[id]-1)
	n.has[id] = r
	switch typeURL {
	case clusters:
		var c clusterpb.Cluster
		if err := r.GetResource().UnmarshalTo(&c); err != nil {
			n.t.Errorf("%s: %v", n.id, err)
		}
		n.uses[r.GetName()] = c.GetEdsClusterConfig().GetServiceName()
		n.warming[r.GetName()] = true
		delete(n.cut, r.GetName())
	case assignments:
		maps.DeleteFunc(n.warming, func(cluster string, _ bool) bool { return n.uses[cluster] == r.GetName() })
	case frontends:
		if trusted && n.has[resource{clusters, r.GetName()}] == nil {
			n.t.Errorf("%s: frontend %s came before its cluster", n.id, r.GetName())
		}
	}
}

// warms reports whether a cluster waits for an assignment.
func (n *walkClient) warms(assignment string) bool {
	for cluster := range n.warming {
		if n.uses[cluster] == assignment {
			return true
		}
	}
	return false
}

// remove takes in that a resource is gone.
func (n *walkClient) remove(typeURL, name string) {
	id := resource{typeURL, name}
	delete(n.has, id)
	if typeURL != clusters {
		return
	}
	delete(n.uses, name)
	delete(n.warming, name)
	// Before the server knows of the frontends on this stream it cannot spare them.
	if !n.session.rejected && n.session.received[frontends] && n.has[resource{frontends, name}] != nil {
		n.t.Errorf("%s: cluster %s went before its frontend", n.id, name)
	}
}

// follow subscribes to the assignments that the clusters refer to now, and from those that they did before.
func (n *walkClient) follow(before []string) {
	now := n.wanted()
	if _, subscribed := n.session.received[assignments]; !subscribed {
		if len(now) > 0 {
			n.request(assignments, now)
		}
		return
	}
	req := &discoverypb.DeltaDiscoveryRequest{TypeUrl: assignments}
	for _, name := range now {
		if !slices.Contains(before, name) {
			req.ResourceNamesSubscribe = append(req.ResourceNamesSubscribe, name)
			n.session.asked[resource{assignments, name}] = 3
		}
	}
	for _, name := range before {
		if !slices.Contains(now, name) {
			req.ResourceNamesUnsubscribe = append(req.ResourceNamesUnsubscribe, name)
			delete(n.has, resource{assignments, name})
		}
	}
	if len(req.ResourceNamesSubscribe)+len(req.ResourceNamesUnsubscribe) > 0 {
		n.session.queue = append(n.session.queue, req)
	}
}

// pipe is a stream without a network. It holds nothing: who sends waits for the other side.
type pipe struct {
	grpc.ServerStream
	ctx       context.Context
	requests  chan *discoverypb.DeltaDiscoveryRequest
	responses chan *discoverypb.DeltaDiscoveryResponse
}

func (p *pipe) Context() context.Context { return p.ctx }

func (p *pipe) Send(m *discoverypb.DeltaDiscoveryResponse) error {
	select {
	case p.responses <- m:
		return nil
	case <-p.ctx.Done():
		return p.ctx.Err()
	}
}

func (p *pipe) Recv() (*discoverypb.DeltaDiscoveryRequest, error) {
	select {
	case m := <-p.requests:
		return m, nil
	case <-p.ctx.Done():
		return nil, p.ctx.Err()
	}
}
