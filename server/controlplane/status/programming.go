package status

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/fairlead/fairlead/cache"
	"github.com/fairlead/fairlead/translate/envoy"
)

const (
	// keptPublications and keptFor bound how many publishes are kept that a node has yet to acknowledge, and for how long. A
	// node that takes longer was disconnected, and its status says so.
	keptPublications = 1024
	keptFor          = 5 * time.Minute
)

// NodeTypes are the types of resources that a node's agent subscribes to. It forwards as published when it has
// acknowledged all of them.
var NodeTypes = []string{envoy.NodeType, envoy.ClusterType, envoy.AssignmentType, envoy.FrontendType}

// acks is what a node has acknowledged.
type acks struct {
	done uint64         // The last publish that it is known to have completely.
	open []*Publication // Those that it has in part.
}

// Publish publishes an update with its Publication, and keeps that. The lock is held meanwhile: a node may
// acknowledge before Publish has returned.
func (t *Tracker) Publish(update cache.Update, p *Publication) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p.close(t.cache.Publish(update))
	t.kept = append(t.kept, p)
	drop := max(0, len(t.kept)-keptPublications)
	for drop < len(t.kept) && p.published.Sub(t.kept[drop].published) > keptFor {
		drop++
	}
	clear(t.kept[:drop])
	t.kept = t.kept[drop:]
	t.prune()
	t.metrics.published(p)
}

// Acked records what a node's agent has acknowledged.
func (t *Tracker) Acked(node, typeURL string, since, seq uint64) {
	now := time.Now()
	t.metrics.responded(typeURL, acked)
	each := t.cache.AppliedEach(node, NodeTypes)
	if each[slices.Index(NodeTypes, envoy.NodeType)] == 0 {
		return // A gRPC program, which is no node, or an agent that does not know its own node yet and so forwards nothing.
	}
	for _, p := range t.acknowledge(ack{node: node, since: since, seq: seq, done: least(each), at: now}) {
		p.acked(t.tracer, node, now)
		t.metrics.programmed(p, now)
	}
}

// Nacked counts that a client rejected what it was sent; the server of xDS logs it.
func (t *Tracker) Nacked(_, typeURL, _ string) { t.metrics.responded(typeURL, nacked) }

// least returns the last publish of which a node has everything that it subscribes to, of what it has applied of each type.
func least(each []uint64) uint64 {
	var done uint64
	for _, seq := range each {
		if seq > 0 && (done == 0 || seq < done) {
			done = seq
		}
	}
	return done
}

// ack is one acknowledgement: of a response with something of the publishes from since on. Now the node has everything
// of the type up to seq, and of all types up to done.
type ack struct {
	node      string
	since     uint64
	seq, done uint64
	at        time.Time
}

// acknowledge returns the publishes that the node had something of and now has completely.
func (t *Tracker) acknowledge(a ack) []*Publication {
	// A client that lacks everything from the first publish on has just connected. What it gets is no change.
	if a.since <= 1 {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.nodes[a.node]
	if n == nil {
		n = &acks{}
		t.nodes[a.node] = n
	}
	for i := len(t.kept) - 1; i >= 0 && t.kept[i].seq >= a.since; i-- {
		if k := t.kept[i]; k.seq <= a.seq && k.seq > n.done && !slices.Contains(n.open, k) {
			n.open = append(n.open, k)
		}
	}
	n.done = max(n.done, a.done)

	var complete []*Publication
	n.open = slices.DeleteFunc(n.open, func(k *Publication) bool {
		if k.seq <= n.done {
			complete = append(complete, k)
		}
		return k.seq <= n.done || a.at.Sub(k.published) > keptFor
	})
	slices.SortFunc(complete, func(a, b *Publication) int { return cmp.Compare(a.seq, b.seq) })
	return complete
}

// prune removes nodes that are no longer connected, once they could be half of all. The lock is held.
func (t *Tracker) prune() {
	if len(t.nodes) < max(t.limit, keptPublications) {
		return
	}
	connected := map[string]bool{}
	for _, s := range t.cache.Status() {
		connected[s.Node] = true
	}
	maps.DeleteFunc(t.nodes, func(node string, _ *acks) bool { return !connected[node] })
	t.limit = 2 * len(t.nodes)
}

// last returns the sequence number of the last publish, 0 before the first.
func (t *Tracker) last() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.kept) == 0 {
		return 0
	}
	return t.kept[len(t.kept)-1].seq
}
