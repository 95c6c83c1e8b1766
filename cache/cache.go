// Package cache remembers what clients were sent.
//
// In come Units: what each Service contributes, by variant; and Views: what may differ between nodes. Out go xDS
// responses, delta and state of the world, through go-control-plane's server: a [Stream] is its ConfigWatcher for one
// client and the [Cache] its ConfigFetcher. The package never decides what a resource contains, never looks into one
// (except for the assignment that a cluster refers to) and does no I/O; it does not know what time it is.
package cache

import (
	"sync"

	"github.com/fairlead/fairlead/translate/model"
)

// Unit is what one Service contributes. It is immutable, and its methods are called while the cache is locked: they
// must not call the cache.
type Unit interface {
	// Variant returns the part of a view that matters to this unit, "" when all nodes see the same. Views that get the
	// same resources should have the same variant: resources are rendered and kept once per variant.
	Variant(model.View) string
	// Resources returns the resources of a variant, in any order. It is called at most once per variant while a
	// connected view needs it.
	Resources(variant string) []Resource
}

// Update is a set of changes that become visible together.
type Update struct {
	Units       map[string]Unit        // By ID, such as the Service's key. Nil removes.
	Views       map[string]*model.View // By node.id. Nil removes. A client whose node is not here sees View{node.id, its locality's zone}.
	Traceparent string                 // W3C trace context that goes with the resources that the update changes; may be empty.
}

// Observer is told what clients make of responses. Its methods are called without a lock held, on the stream's
// goroutine: they may call the cache but should be quick.
type Observer interface {
	// Acked says that the node's client has acknowledged a response, and now has everything of the type up to seq.
	Acked(node, typeURL string, seq uint64)
	// Nacked says that the node's client has rejected a response, and why in its own words.
	Nacked(node, typeURL, detail string)
}

// Config is what a Cache needs.
type Config struct {
	Observer Observer // May be nil.
}

// Cache holds the units and what every stream was sent. It is safe for concurrent use.
type Cache struct {
	observer Observer

	mu  sync.Mutex
	seq uint64
}

// StreamStatus is the state of one type on one stream.
type StreamStatus struct {
	Node       string
	TypeURL    string
	Protocol   string // "delta" or "sotw".
	Wildcard   bool
	Subscribed int    // Names subscribed to, besides the wildcard.
	Sent       uint64 // The last publish that the last response covered; 0 before the first response.
	Applied    uint64 // As Cache.Applied, for this stream.
	Nack       string // Why the client rejected its configuration; empty once that is replaced.
}

// New returns an empty cache. It answers nothing before the first Publish.
func New(cfg Config) *Cache {
	return &Cache{observer: cfg.Observer}
}

// Publish makes an update visible and sends what changed to the streams that can see it. It returns the sequence
// number of the update, counted from 1, which Applied and Observer refer to.
func (c *Cache) Publish(u Update) (seq uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seq++
	return c.seq
}

// Applied returns the highest sequence number up to which the node's client is known to have everything of a type that
// it subscribes to: received and not rejected, or nothing to send. 0 when it is not connected or does not subscribe.
// With several streams of a node it is the least of theirs.
func (c *Cache) Applied(node, typeURL string) uint64 { return 0 }

// Has reports whether the node's client subscribes to a resource and is known to have its present content.
func (c *Cache) Has(node, typeURL, name string) bool { return false }

// Status returns the state of every stream and type, sorted by node, then type.
func (c *Cache) Status() []StreamStatus { return nil }
