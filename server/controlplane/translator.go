package controlplane

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/fairlead/fairlead/cache"
	"github.com/fairlead/fairlead/server/source"
	"github.com/fairlead/fairlead/translate"
	"github.com/fairlead/fairlead/translate/grpc"
	"github.com/fairlead/fairlead/translate/model"
)

// owner is the one goroutine that holds the world. It takes all changes there are, translates the Services that they
// touch and publishes the result. There is no timer: a single change is published at once, and while many come the
// owner is busy, so that the next batch is larger.
type owner struct {
	domain   grpc.Domain
	queue    *source.Queue
	ledger   *ledger
	receipts *receipts
	metrics  *metrics
	log      *slog.Logger
	ready    chan struct{} // Closed with the first publish.

	mu        sync.Mutex // Guards world and publishes, for those who ask about a Service.
	world     *translate.World
	publishes map[model.ServiceKey]uint64 // The last publish that each forwarded Service was in, but the first.
	frontends tally[model.ServiceKey]     // How many each Service has that is forwarded.
	endpoints tally[model.ObjectKey]      // How many each slice has.
	nodes     map[string]published        // What the cache knows of each node.
	stale     map[string]bool             // Nodes whose object was touched since.
	first     bool                        // Nothing has been published yet.
	units     uint64                      // How many units there have been.
}

// published is what the cache was told of a node.
type published struct {
	view    model.View
	version string // Of its description.
}

func newOwner(o *owner) *owner {
	o.world, o.publishes = translate.NewWorld(), map[model.ServiceKey]uint64{}
	o.nodes, o.stale = map[string]published{}, map[string]bool{}
	o.ready, o.first = make(chan struct{}), true
	return o
}

func (o *owner) run(ctx context.Context) error {
	for {
		batch, err := o.queue.Take(ctx)
		if err != nil {
			return nil // The process stops.
		}
		o.apply(batch)
	}
}

// apply takes a batch into the world and publishes what that changes. Before all kinds have been listed completely it
// publishes nothing: half a world would take away what clients have.
func (o *owner) apply(batch source.Batch) {
	o.mu.Lock()
	defer o.mu.Unlock()
	started := time.Now()
	for _, c := range batch.Changes {
		o.set(c.Object)
	}
	o.ledger.setWorld(o.world.Problems())
	if !batch.Synced {
		return
	}
	services := o.world.Changed()
	update := cache.Update{Units: map[string]cache.Unit{}, Views: map[string]*model.View{}}
	units := make(map[model.ServiceKey]uint64, len(services))
	for _, key := range services {
		units[key] = o.translateService(key, &update)
	}
	for name := range o.stale {
		o.translateNode(name, &update)
	}
	clear(o.stale)
	o.count()

	if !o.first && len(update.Units) == 0 && len(update.Views) == 0 {
		return
	}
	var changes []source.Change // The first publish is of a state, not of changes.
	if !o.first {
		changes = effective(batch.Changes, services, &update)
	}
	receipt := newReceipt(o.receipts.tracer, changes, started)
	update.Traceparent = receipt.traceparent()
	o.receipts.publish(update, receipt)
	o.ledger.replaced(units)
	o.metrics.published(receipt)
	o.remember(services, receipt.seq)
	if o.first {
		o.first = false
		o.log.Info("all objects are known and published", "services", len(o.frontends.of), "nodes", len(o.nodes), "took", time.Since(started))
		close(o.ready)
	}
}

// remember notes in which publish Services were. The first has all, so it need not be remembered.
func (o *owner) remember(services []model.ServiceKey, seq uint64) {
	for _, key := range services {
		switch _, forwarded := o.frontends.of[key]; {
		case !forwarded:
			delete(o.publishes, key)
		case !o.first:
			o.publishes[key] = seq
		}
	}
}

// set takes one object into the world.
func (o *owner) set(object model.Object) {
	o.world.Set(object)
	switch key := object.Key; key.Kind {
	case model.KindEndpointSlice:
		n := 0
		if object.Slice != nil {
			n = len(object.Slice.Endpoints)
		}
		o.endpoints.set(key, n)
	case model.KindNode:
		o.stale[key.Name] = true
	}
}

// count shows others how much there is.
func (o *owner) count() {
	o.metrics.services.Store(int64(len(o.frontends.of)))
	o.metrics.frontends.Store(o.frontends.sum)
	o.metrics.endpoints.Store(o.endpoints.sum)
	o.metrics.nodes.Store(int64(len(o.nodes)))
}

// translateService adds to the update what a Service contributes now, and returns the number of its unit, 0 if it has none.
func (o *owner) translateService(key model.ServiceKey, update *cache.Update) uint64 {
	plan := o.world.Plan(key)
	if plan == nil {
		o.frontends.set(key, 0)
		update.Units[key.String()] = nil
		return 0
	}
	o.frontends.set(key, plan.Size())
	o.units++
	update.Units[key.String()] = serviceUnit{key, plan, o.domain, o.ledger, o.units}
	return o.units
}

// translateNode adds to the update what a node contributes now. A Node object is written every few minutes, by its
// kubelet, without a change that matters here.
func (o *owner) translateNode(name string, update *cache.Update) {
	n := o.world.Node(name)
	if n == nil {
		if _, known := o.nodes[name]; known {
			delete(o.nodes, name)
			update.Units[nodeUnitID(name)], update.Views[name] = nil, nil
		}
		return
	}
	unit, err := newNodeUnit(n)
	if err != nil {
		o.log.Error("node cannot be described to its agent", "node", name, "error", err)
		return
	}
	now := published{o.world.View(name), unit.resource.Version}
	if o.nodes[name] == now {
		return
	}
	o.nodes[name] = now
	update.Units[nodeUnitID(name)], update.Views[name] = unit, &now.view
}

// effective returns the changes that led to an update. Of a slice that is gone nobody knows any more whose it was.
func effective(changes []source.Change, services []model.ServiceKey, update *cache.Update) []source.Change {
	touched := make(map[model.ServiceKey]bool, len(services))
	for _, key := range services {
		touched[key] = true
	}
	var all []source.Change
	for _, c := range changes {
		effect := false
		switch c.Key.Kind {
		case model.KindService:
			effect = touched[model.ServiceKey{Namespace: c.Key.Namespace, Name: c.Key.Name}]
		case model.KindEndpointSlice:
			effect = len(services) > 0 && (c.Slice == nil || touched[c.Slice.Service])
		case model.KindNode:
			_, effect = update.Views[c.Key.Name]
		}
		if effect {
			all = append(all, c)
		}
	}
	return all
}

// tally is how many each of many things has, and the sum.
type tally[K comparable] struct {
	of  map[K]int
	sum int64
}

// set says how many k has now. What has none is not listed.
func (t *tally[K]) set(k K, n int) {
	t.sum += int64(n - t.of[k])
	switch {
	case n == 0:
		delete(t.of, k)
	case t.of == nil:
		t.of = map[K]int{k: n}
	default:
		t.of[k] = n
	}
}
