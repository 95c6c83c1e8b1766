package controlplane

import (
	"cmp"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/fairlead/fairlead/cache"
	"github.com/fairlead/fairlead/translate/envoy"
)

const (
	// keptReceipts and keptFor bound what is remembered of publishes that a node has yet to acknowledge. A node that
	// takes longer was away, and its status says so.
	keptReceipts = 1024
	keptFor      = 5 * time.Minute
)

// nodeTypes are the types of resources that a node's agent subscribes to. It forwards as published when it has
// acknowledged all of them.
var nodeTypes = []string{envoy.NodeType, envoy.ClusterType, envoy.AssignmentType, envoy.FrontendType}

// receipts finds out when each node has what was published, from what its agent acknowledges. It is the cache's
// Observer, and safe for concurrent use.
type receipts struct {
	tracer  trace.Tracer
	metrics *metrics
	log     *slog.Logger
	cache   *cache.Cache

	mu    sync.Mutex // Guards what follows. The cache may be called under it: the cache calls an Observer without its own lock.
	kept  []*receipt // In order of seq.
	nodes map[string]*acks
	limit int // Of nodes, before those that are gone are looked for.
}

// acks is what a node has acknowledged.
type acks struct {
	done uint64     // The last publish that it is known to have completely.
	open []*receipt // Those that it has in part.
}

func newReceipts(tracer trace.Tracer, m *metrics, log *slog.Logger) *receipts {
	return &receipts{tracer: tracer, metrics: m, log: log, nodes: map[string]*acks{}}
}

// publish publishes an update whose receipt is open, and keeps the receipt. The lock is held meanwhile: a node may
// acknowledge before Publish has returned.
func (r *receipts) publish(update cache.Update, receipt *receipt) {
	r.mu.Lock()
	defer r.mu.Unlock()
	receipt.close(r.cache.Publish(update))
	r.kept = append(r.kept, receipt)
	drop := max(0, len(r.kept)-keptReceipts)
	for drop < len(r.kept) && receipt.published.Sub(r.kept[drop].published) > keptFor {
		drop++
	}
	clear(r.kept[:drop])
	r.kept = r.kept[drop:]
	r.prune()
}

// Acked notes what a node's agent has acknowledged.
func (r *receipts) Acked(node, typeURL string, since, seq uint64) {
	now := time.Now()
	r.metrics.responded(typeURL, "ack")
	for _, receipt := range r.acknowledge(ack{node: node, since: since, seq: seq, done: r.applied(node), at: now}) {
		receipt.acked(r.tracer, node, now)
		r.metrics.programmed(receipt, now)
	}
}

// Nacked tells people that a client could not use what it was sent.
func (r *receipts) Nacked(node, typeURL, detail string) {
	r.metrics.responded(typeURL, "nack")
	r.log.Warn("a client rejected resources and keeps what it had", "node", node, "type", typeURL, "detail", detail)
}

// applied returns the last publish of which the node has everything that it subscribes to.
func (r *receipts) applied(node string) uint64 {
	var done uint64
	for _, t := range nodeTypes {
		if seq := r.cache.Applied(node, t); seq > 0 && (done == 0 || seq < done) {
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

// acknowledge returns the receipts of the publishes that the node had something of and now has completely.
func (r *receipts) acknowledge(a ack) []*receipt {
	// A client that lacks everything from the first publish on has just connected. What it gets is not news.
	if a.since <= 1 {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.nodes[a.node]
	if n == nil {
		n = &acks{}
		r.nodes[a.node] = n
	}
	for i := len(r.kept) - 1; i >= 0 && r.kept[i].seq >= a.since; i-- {
		if k := r.kept[i]; k.seq <= a.seq && k.seq > n.done && !slices.Contains(n.open, k) {
			n.open = append(n.open, k)
		}
	}
	n.done = max(n.done, a.done)

	var complete []*receipt
	n.open = slices.DeleteFunc(n.open, func(k *receipt) bool {
		if k.seq <= n.done {
			complete = append(complete, k)
		}
		return k.seq <= n.done || a.at.Sub(k.published) > keptFor
	})
	slices.SortFunc(complete, func(a, b *receipt) int { return cmp.Compare(a.seq, b.seq) })
	return complete
}

// prune forgets nodes that are no longer connected once they could be half of all. The lock is held.
func (r *receipts) prune() {
	if len(r.nodes) < max(r.limit, keptReceipts) {
		return
	}
	connected := map[string]bool{}
	for _, s := range r.cache.Status() {
		connected[s.Node] = true
	}
	maps.DeleteFunc(r.nodes, func(node string, _ *acks) bool { return !connected[node] })
	r.limit = 2 * len(r.nodes)
}

// last returns the sequence number of the last publish, 0 before the first.
func (r *receipts) last() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.kept) == 0 {
		return 0
	}
	return r.kept[len(r.kept)-1].seq
}

// published returns when a publish happened, if that is remembered.
func (r *receipts) published(seq uint64) (time.Time, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	i, found := slices.BinarySearchFunc(r.kept, seq, func(k *receipt, seq uint64) int { return cmp.Compare(k.seq, seq) })
	if !found {
		return time.Time{}, false
	}
	return r.kept[i].published, true
}
