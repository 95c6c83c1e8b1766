// Package source reads the cluster's objects.
//
// In comes what an API server has, or what manifests in a folder describe; out go, through a Queue, the objects as model
// values, each whenever it changes, and a mark when all of them have been listed once. The package never decides what
// an object means (package kube does), and never waits for the consumer of the queue.
package source

import (
	"context"
	"sync"
	"time"

	"github.com/fairlead/fairlead/translate/model"
)

// KindSource is the kind of the key under which a source reports its own problems, such as a file that cannot
// be read: the key's name is the file. There is no object of this kind.
const KindSource model.ObjectKind = "Source"

// objectKinds must have been listed completely before anything is published: without Services nothing is forwarded,
// without slices everything is refused, and without Nodes no view has a zone.
var objectKinds = []model.ObjectKind{model.KindService, model.KindEndpointSlice, model.KindNode}

// Event is the newest state of one object. A deleted object holds nothing and has no problems.
type Event struct {
	model.Object

	// Seen is when the source received it. Of several changes that became one, it is the first one's: that is how
	// long the nodes have waited.
	Seen time.Time
}

// Batch is everything that changed since the last one.
type Batch struct {
	Events []Event // One an object, in the order in which the objects were first touched.
	Synced bool    // Every kind has been listed completely, in this batch or before.
}

// Queue holds the changes that have not been taken yet, one an object: a later one replaces an earlier one. So a source
// never waits, and what is held is bounded by the number of objects, however slow the taker is.
//
// A Queue is safe for concurrent use; one goroutine at a time may Take.
type Queue struct {
	wake chan struct{} // Holds one token while there is something to take.

	mu       sync.Mutex // Guards what follows.
	pending  []Event
	index    map[model.ObjectKey]int // Into pending.
	unsynced map[model.ObjectKind]bool
	news     bool // A kind has become synced, or Wake was called, since the last Take.
}

// NewQueue returns an empty queue.
func NewQueue() *Queue {
	q := &Queue{wake: make(chan struct{}, 1), index: map[model.ObjectKey]int{}, unsynced: map[model.ObjectKind]bool{}}
	for _, k := range objectKinds {
		q.unsynced[k] = true
	}
	return q
}

// Set queues changes.
func (q *Queue) Set(changes ...Event) {
	if len(changes) == 0 {
		return
	}
	q.mu.Lock()
	for _, c := range changes {
		if i, ok := q.index[c.Key]; ok {
			c.Seen = q.pending[i].Seen
			q.pending[i] = c
			continue
		}
		q.index[c.Key] = len(q.pending)
		q.pending = append(q.pending, c)
	}
	q.mu.Unlock()
	q.signal()
}

// SetSynced marks kinds as synced: all their objects have been Set.
func (q *Queue) SetSynced(kinds ...model.ObjectKind) {
	q.mu.Lock()
	for _, k := range kinds {
		if q.unsynced[k] {
			delete(q.unsynced, k)
			q.news = true
		}
	}
	q.mu.Unlock()
	q.signal()
}

// Wake has Take return, with a batch without events if nothing waits.
func (q *Queue) Wake() {
	q.mu.Lock()
	q.news = true
	q.mu.Unlock()
	q.signal()
}

func (q *Queue) signal() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// Take waits for changes and takes all there are. Its error is the context's.
func (q *Queue) Take(ctx context.Context) (Batch, error) {
	for {
		select {
		case <-ctx.Done():
			return Batch{}, ctx.Err()
		case <-q.wake:
		}
		if b, ok := q.take(); ok {
			return b, nil
		}
	}
}

func (q *Queue) take() (Batch, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.pending) == 0 && !q.news {
		return Batch{}, false
	}
	b := Batch{Events: q.pending, Synced: len(q.unsynced) == 0}
	q.pending, q.index, q.news = nil, map[model.ObjectKey]int{}, false
	return b, true
}

// Unsynced returns the kinds that have not been listed completely, for the reason that /readyz gives.
func (q *Queue) Unsynced() []model.ObjectKind {
	q.mu.Lock()
	defer q.mu.Unlock()
	var kinds []model.ObjectKind
	for _, k := range objectKinds {
		if q.unsynced[k] {
			kinds = append(kinds, k)
		}
	}
	return kinds
}

// Oldest returns when the change that has waited longest was seen, and how many changes wait.
func (q *Queue) Oldest() (seen time.Time, waiting int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, c := range q.pending {
		if seen.IsZero() || c.Seen.Before(seen) {
			seen = c.Seen
		}
	}
	return seen, len(q.pending)
}
