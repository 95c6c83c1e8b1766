package controlplane

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/fairlead/fairlead/cache"
	"github.com/fairlead/fairlead/server/controlplane/status"
	"github.com/fairlead/fairlead/server/source"
	"github.com/fairlead/fairlead/translate"
	"github.com/fairlead/fairlead/translate/grpc"
	"github.com/fairlead/fairlead/translate/model"
)

// translator is the one goroutine that holds the world. It takes all changes there are, translates the Services that they
// touch and publishes the result. There is no timer: a single change is published at once, and while many come the
// translator is busy, so that the next batch is larger.
type translator struct {
	domain  grpc.Domain
	queue   *source.Queue
	tracker *status.Tracker
	cache   *cache.Cache // Of which the tracker publishes.
	log     *slog.Logger
	ready   chan struct{} // Closed with the first publish.

	mu        sync.Mutex // Guards world and publishes, which Explain and ServiceStatus read.
	world     *translate.World
	publishes map[model.ServiceKey]uint64 // The last publish that each forwarded Service was in, but the first.
	frontends tally[model.ServiceKey]     // How many each Service has that is forwarded.
	endpoints tally[model.ObjectKey]      // How many each slice has.
	nodes     map[string]nodeState        // What was published of each node.
	stale     map[string]bool             // Nodes whose object was touched since.
	first     bool                        // Nothing has been published yet.
}

// nodeState is what was published of a node.
type nodeState struct {
	view    model.View
	version string // Of its description.
}

func newTranslator(o *translator) *translator {
	o.world, o.publishes = translate.NewWorld(), map[model.ServiceKey]uint64{}
	o.nodes, o.stale = map[string]nodeState{}, map[string]bool{}
	o.ready, o.first = make(chan struct{}), true
	return o
}

func (t *translator) run(ctx context.Context) error {
	for {
		batch, err := t.queue.Take(ctx)
		if err != nil {
			return nil // The process stops.
		}
		t.apply(batch)
	}
}

// apply applies a batch to the world and publishes what that changes. Before all kinds have been listed completely it
// publishes nothing: an incomplete state would remove what clients have.
func (t *translator) apply(batch source.Batch) {
	t.mu.Lock()
	defer t.mu.Unlock()
	started := time.Now()
	for _, c := range batch.Events {
		t.setObject(c.Object)
	}
	t.reportProblems() // Before clients see their effect.
	defer t.reportProblems()
	if !batch.Synced {
		return
	}
	services := t.world.Changed()
	update := cache.Update{Contributions: map[string]cache.Contribution{}, Views: map[string]*model.View{}}
	for _, key := range services {
		t.translateService(key, &update)
	}
	for name := range t.stale {
		t.translateNode(name, &update)
	}
	if len(update.Views) > 0 { // A kubelet writes its Node every few minutes without one.
		t.tracker.SetNodes(t.world.Nodes())
	}
	clear(t.stale)
	t.count()
	if t.first || len(update.Contributions) > 0 || len(update.Views) > 0 {
		t.publish(batch.Events, services, update, started)
	}
}

// publish publishes what was translated of events since started.
func (t *translator) publish(events []source.Event, services []model.ServiceKey, update cache.Update, started time.Time) {
	var effects []source.Event // The first publish is of a state, not of changes.
	if !t.first {
		effects = effective(events, services, &update)
	}
	p := t.tracker.NewPublication(effects, started)
	update.Traceparent = p.Traceparent()
	t.tracker.Publish(update, p)
	t.recordPublish(services, p.Seq())
	if t.first {
		t.first = false
		t.log.Info("all objects are known and published", "services", len(t.frontends.of), "nodes", len(t.nodes), "took", time.Since(started))
		close(t.ready)
	}
}

// reportProblems passes the tracker the problems of objects, and of Services that are not forwarded since their resources
// cannot be rendered. It is the only writer of problems; the cache wakes it when a client connects for which rendering fails.
func (t *translator) reportProblems() {
	problems := slices.Clone(t.world.Problems())
	for id, err := range t.cache.Failures() {
		problems = append(problems, model.Problem{
			Object:  string(model.KindService) + " " + id,
			Reason:  model.InvalidObject,
			Message: fmt.Sprintf("its resources would be rejected by Envoy, so the Service is not forwarded: %v", err),
		})
	}
	t.tracker.SetProblems(problems)
}

// recordPublish records the publish that Services were in. The first has all, so it need not be recorded.
func (t *translator) recordPublish(services []model.ServiceKey, seq uint64) {
	for _, key := range services {
		switch _, forwarded := t.frontends.of[key]; {
		case !forwarded:
			delete(t.publishes, key)
		case !t.first:
			t.publishes[key] = seq
		}
	}
}

// setObject sets one object in the world.
func (t *translator) setObject(object model.Object) {
	t.world.Set(object)
	switch key := object.Key; key.Kind {
	case model.KindEndpointSlice:
		n := 0
		if object.Slice != nil {
			n = len(object.Slice.Endpoints)
		}
		t.endpoints.set(key, n)
	case model.KindNode:
		t.stale[key.Name] = true
	}
}

// count passes the tracker the numbers of objects.
func (t *translator) count() {
	t.tracker.SetWorld(status.World{
		Services: int64(len(t.frontends.of)), Frontends: t.frontends.sum, Endpoints: t.endpoints.sum, Nodes: int64(len(t.nodes)),
	})
}

// translateService adds to the update what a Service contributes now.
func (t *translator) translateService(key model.ServiceKey, update *cache.Update) {
	plan := t.world.Plan(key)
	if plan == nil {
		t.frontends.set(key, 0)
		update.Contributions[key.String()] = nil
		return
	}
	t.frontends.set(key, plan.Size())
	update.Contributions[key.String()] = serviceContribution{plan, t.domain}
}

// translateNode adds to the update what a node contributes now. A Node object is written every few minutes, by its
// kubelet, without a change that matters here.
func (t *translator) translateNode(name string, update *cache.Update) {
	n := t.world.Node(name)
	if n == nil {
		if _, known := t.nodes[name]; known {
			delete(t.nodes, name)
			update.Contributions[nodeContributionID(name)], update.Views[name] = nil, nil
		}
		return
	}
	unit, err := newNodeContribution(n)
	if err != nil {
		t.log.Error("node cannot be described to its agent", "node", name, "error", err)
		return
	}
	now := nodeState{t.world.View(name), unit.resource.Version}
	if t.nodes[name] == now {
		return
	}
	t.nodes[name] = now
	update.Contributions[nodeContributionID(name)], update.Views[name] = unit, &now.view
}

// effective returns the changes that led to an update. Of a deleted slice the world no longer knows the Service.
func effective(changes []source.Event, services []model.ServiceKey, update *cache.Update) []source.Event {
	touched := make(map[model.ServiceKey]bool, len(services))
	for _, key := range services {
		touched[key] = true
	}
	var all []source.Event
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

// set sets the number of k. A k with none is not listed.
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
