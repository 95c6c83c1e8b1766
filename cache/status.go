package cache

import (
	"cmp"
	"slices"
	"strings"

	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
)

// StreamStatus is the state of one type on one stream.
type StreamStatus struct {
	Node       string `json:"node"`
	TypeURL    string `json:"typeUrl"`
	Protocol   string `json:"protocol"` // "delta" or "sotw".
	Wildcard   bool   `json:"wildcard"`
	Subscribed int    `json:"subscribed"`     // Names subscribed to, besides the wildcard.
	Sent       uint64 `json:"sent"`           // The publish that the client reached with the last response; 0 before the first.
	Applied    uint64 `json:"applied"`        // As Cache.Applied, for this stream.
	Nack       string `json:"nack,omitempty"` // Why the client rejected what it was sent; empty once it has accepted other content.

	// Client is what the client last said of itself: its version, and what else its metadata holds. It is immutable.
	Client *corepb.Node `json:"-"`
}

// Status returns the state of every type on every stream, by node, type and protocol.
func (c *Cache) Status() []StreamStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	var all []StreamStatus
	for _, streams := range c.nodes {
		for s := range streams {
			for _, t := range s.subs {
				all = append(all, t.status())
			}
		}
	}
	slices.SortFunc(all, func(a, b StreamStatus) int {
		return cmp.Or(strings.Compare(a.Node, b.Node), strings.Compare(a.TypeURL, b.TypeURL), strings.Compare(a.Protocol, b.Protocol))
	})
	return all
}

func (t *subscription) status() StreamStatus {
	protocol := "sotw"
	if t.delta() {
		protocol = "delta"
	}
	return StreamStatus{
		Node:       t.stream.node,
		TypeURL:    t.typeURL,
		Protocol:   protocol,
		Wildcard:   t.wildcard,
		Subscribed: t.subscribed,
		Sent:       t.sent,
		Applied:    t.applied(t.stream.cache.seq),
		Nack:       t.nack,
		Client:     t.stream.client,
	}
}

// Applied returns the highest sequence number up to which the node's client is known to have everything of a type that
// it subscribes to: it has acknowledged it, or there was nothing to send. It is 0 when the node has no stream that
// subscribes to the type, and the least of all where it has several. It falls back when a client subscribes to more.
func (c *Cache) Applied(node, typeURL string) uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.applied(node, typeURL)
}

// AppliedEach returns what Applied does for each of the types, all at one moment.
func (c *Cache) AppliedEach(node string, typeURLs []string) []uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	each := make([]uint64, len(typeURLs))
	for i, typeURL := range typeURLs {
		each[i] = c.applied(node, typeURL)
	}
	return each
}

func (c *Cache) applied(node, typeURL string) uint64 {
	least, found := c.seq, false
	for s := range c.nodes[node] {
		if t := s.find(typeURL); t != nil {
			least, found = min(least, t.applied(c.seq)), true
		}
	}
	if !found {
		return 0
	}
	return least
}

// Has reports whether there is a resource of the name, and the node's clients that subscribe to its type, at least
// one, subscribe to it too and are known to have its present content.
//
// It answers what Applied cannot: an Envoy that has acknowledged a cluster may not have asked for its assignment yet.
func (c *Cache) Has(node, typeURL, name string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	has := false
	for s := range c.nodes[node] {
		t := s.find(typeURL)
		if t == nil {
			continue
		}
		if t.lookUp(name) == nil || !t.holds(name) {
			return false
		}
		has = true
	}
	return has
}
