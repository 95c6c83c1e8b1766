// Package cache holds the resources that clients subscribe to, and what each client was sent.
//
// In come Contributions: what each Service contributes, by variant; and Views: what may differ between nodes. Out go xDS
// responses, delta and state of the world, through go-control-plane's server: a [Stream] is its ConfigWatcher for one
// client, the [Cache] its ConfigFetcher. The package never decides what a resource contains, never looks into one
// (except for the assignment that a cluster refers to), does no I/O and reads no clock.
package cache

import (
	"strconv"
	"sync"

	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/fairlead/fairlead/translate/model"
)

// Contribution is what one Service contributes. It is immutable. Its methods are called on the goroutines of those who
// publish and of streams, also several at a time; they must not call the cache.
type Contribution interface {
	// Variant returns the part of a view that matters to this contribution, "" when all nodes see the same. Views that get the
	// same resources should have the same variant, for resources are rendered and kept once per variant.
	Variant(model.View) string
	// Resources returns the resources of a variant, in any order, or why there are none. The caller does not alter them.
	Resources(variant string) ([]Resource, error)
}

// Update is a set of changes that become visible together.
type Update struct {
	Contributions map[string]Contribution // By ID, such as the Service's key. Nil removes.
	Views         map[string]*model.View  // By View.Node. Nil removes. Clients on other nodes see View{node, zone of their locality}.
	Traceparent   string                  // W3C trace context that the changed resources carry; may be empty.
}

// Observer learns how clients answer responses. Its methods are called without a lock held, on the goroutine of the
// stream: they may call the cache, but what they do delays that client's next response.
type Observer interface {
	// Acked is called when the node's client has acknowledged a response, with something of the publishes from since on, and
	// this stream now has everything of the type up to publish seq. Since is 1 for what a client gets first.
	Acked(node, typeURL string, since, seq uint64)
	// Nacked is called when the node's client has rejected a response; detail is its error message.
	Nacked(node, typeURL, detail string)
}

// Config is what a Cache needs.
type Config struct {
	Observer Observer // May be nil.

	// Failed is called when Failures has more entries than after the last Publish: a client connected for which a variant could
	// not be rendered. It is called without a lock held, on the goroutine of the stream. May be nil.
	Failed func()

	// Derive returns the resource that follows from its name alone, always the same. It is called with names that clients
	// subscribe to one by one, and what it returns counts where no contribution has the name: clients that subscribe to
	// everything get what contributions hold. It is called without a lock held, on the goroutines of streams, also several
	// at a time. May be nil.
	Derive func(typeURL, name string) (Resource, bool)
}

// Cache holds the contributions and what every stream was sent. It is safe for concurrent use.
//
// One mutex guards all of it, the state of the streams included. What is done under it for one stream is short: it
// never marshals, since variants are rendered before it is taken (see lockRendered), and it never waits. Responses are handed to
// go-control-plane through channels with room for them (see subscription.push), so a client that does not read delays
// only itself.
type Cache struct {
	observer  Observer
	onFailure func()
	derive    func(typeURL, name string) (Resource, bool)

	mu           sync.Mutex
	seq          uint64 // Publishes so far.
	system       string // The same as text.
	slots        map[string]*slot
	holders      map[resourceName][]*slot        // Which contributions have a resource of the name in some variant, by contribution ID.
	views        map[string]model.View           // By node, as published.
	viewers      map[model.View]*viewer          // The views of connected clients.
	nodes        map[string]map[*Stream]struct{} // The streams of each node.id.
	touched      []*Stream                       // Streams that the present publish may concern; scratch.
	failures     map[string]error                // Why contributions could not be rendered, by ID.
	failed       bool                            // Failures has more entries than after the last Publish.
	viewerDeltas []viewerDelta                   // What viewers lose and gain by the present change of a contribution; scratch.
}

// New returns an empty cache. It sends nothing before the first Publish.
func New(cfg Config) *Cache {
	return &Cache{
		observer:  cfg.Observer,
		onFailure: cfg.Failed,
		failures:  map[string]error{},
		derive:    cfg.Derive,
		slots:     map[string]*slot{},
		holders:   map[resourceName][]*slot{},
		views:     map[string]model.View{},
		viewers:   map[model.View]*viewer{},
		nodes:     map[string]map[*Stream]struct{}{},
	}
}

// Publish makes an update visible and hands what changed to the streams that can see it. It returns the sequence
// number of the update, counted from 1, which Applied and Observer refer to.
func (c *Cache) Publish(u Update) (seq uint64) {
	next := make(map[string]*slot, len(u.Contributions))
	for id, contribution := range u.Contributions {
		if contribution == nil {
			next[id] = nil
			continue
		}
		next[id] = &slot{id: id, contribution: contribution, variants: map[string]*variant{}, rendered: map[string]*rendered{}}
	}
	c.lockRendered(func(w wants) { c.wantUpdate(w, u, next) })
	defer c.mu.Unlock()
	c.seq++
	c.system = strconv.FormatUint(c.seq, 10)
	trace := traceMetadata(u.Traceparent)
	for id, s := range next {
		c.replace(id, s, trace)
	}
	for node, view := range u.Views {
		c.setView(node, view)
	}
	if c.seq == 1 {
		for _, streams := range c.nodes {
			for s := range streams {
				s.touch()
			}
		}
	}
	for i, s := range c.touched {
		s.touched = false
		s.flush()
		c.touched[i] = nil
	}
	c.touched = c.touched[:0]
	c.failed = false // The publisher reads Failures itself.
	return c.seq
}

// viewerDelta is what changes for one viewer.
type viewerDelta struct {
	viewer *viewer
	deltas []delta
}

// replace puts another slot in the place of id, or none, and notes what that changes for each stream.
func (c *Cache) replace(id string, next *slot, trace *corepb.Metadata) {
	old := c.slots[id]
	delete(c.failures, id)
	if next != nil {
		for view := range c.viewers {
			next.acquire(view, old, trace)
		}
		c.noteFailure(next)
	}
	if old == nil && next == nil {
		return
	}

	// What a viewer had is known only before the holders of the names change, what it has only afterwards.
	marks := c.compare(old, next)
	c.drop(old)
	c.hold(next)
	if next == nil {
		delete(c.slots, id)
	} else {
		c.slots[id] = next
	}
	for i, m := range marks {
		for s := range m.viewer.streams {
			s.note(m.deltas)
		}
		marks[i] = viewerDelta{}
	}
	c.viewerDeltas = marks[:0]
}

// compare returns what changes for each viewer when next replaces old. Viewers with the same variants share the work
// and the result.
func (c *Cache) compare(old, next *slot) []viewerDelta {
	type variants struct{ old, next *variant }
	known := map[variants][]delta{}
	for view, w := range c.viewers {
		key := variants{old.of(view), next.of(view)}
		changes, ok := known[key]
		if !ok {
			changes = c.diff(old, key.old, key.next)
			known[key] = changes
		}
		if len(changes) > 0 {
			c.viewerDeltas = append(c.viewerDeltas, viewerDelta{w, c.asSeen(view, changes)})
		}
	}
	return c.viewerDeltas
}

// traceMetadata wraps a W3C trace context in the metadata that delta responses carry beside a resource.
func traceMetadata(traceparent string) *corepb.Metadata {
	if traceparent == "" {
		return nil
	}
	return &corepb.Metadata{FilterMetadata: map[string]*structpb.Struct{
		"fairlead": {Fields: map[string]*structpb.Value{"traceparent": structpb.NewStringValue(traceparent)}},
	}}
}
