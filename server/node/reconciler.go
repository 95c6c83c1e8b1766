package node

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/fairlead/fairlead/cache"
	"github.com/fairlead/fairlead/server/node/dataplane"
	"github.com/fairlead/fairlead/server/node/envoyns"
	"github.com/fairlead/fairlead/server/node/healthcheck"
	"github.com/fairlead/fairlead/server/node/launcher"
	"github.com/fairlead/fairlead/server/node/upstream"
	"github.com/fairlead/fairlead/translate/envoy"
)

// Waits of the reconciler.
const (
	// envoyTimeout is how long a change waits for the current Envoy before the kernel follows without it. An Envoy that
	// hangs must not keep the node from refusing what has no endpoints.
	envoyTimeout = 10 * time.Second
	// commitTimeout is how long the kernel may refuse a change before the control plane is told, and retryInterval how often it
	// is asked.
	commitTimeout = 30 * time.Second
	retryInterval = time.Second
	// holdTimeout is how long an agent that starts beside a running Envoy waits for a control plane, and settleTime how long
	// after the stream has opened all that it has to add has come.
	holdTimeout = 3 * time.Second
	settleTime  = 300 * time.Millisecond
	// resyncInterval is how often links, routes and rules are put right, whatever the kernel told.
	resyncInterval = 30 * time.Second
	// probeInterval is how often an Envoy that has acknowledged its resources is probed for readiness.
	probeInterval = 20 * time.Millisecond
)

// reconciler owns the state of the node. Everything else tells it by channel, and one change after the other is carried out:
// Envoy first where traffic is to be led to it, the kernel first where it is to be led away.
type reconciler struct {
	config       Config
	log          *slog.Logger
	upstream     *upstream.Client
	cache        *cache.Cache // What the node's Envoys are served.
	table        *dataplane.Table
	desired      *desiredState
	instances    *instances
	checks       *healthcheck.Server
	failingSince time.Time // Since when the kernel does not take the table; zero: it does.

	requests  chan *launcher.Request
	acked     chan struct{} // An Envoy has answered.
	disturbed chan struct{} // Something was deleted from the kernel's table.
	links     chan struct{} // An Envoy instance's link is gone, or a bridge is another than before.

	hold         *startupHold   // Nil once the agent serves.
	pending      *pendingChange // Being carried out; nil between changes.
	commitFailed bool           // The kernel did not take all that it should have; it is asked again, change or none.

	committedAt time.Time // When the kernel last took a change.
	obstacle              // What others do to the node's Service traffic.

	tracer      trace.Tracer
	instruments *instruments
	status      atomic.Pointer[Status] // For others to read.
}

// pendingChange is what one batch of updates asks for.
type pendingChange struct {
	updates    []upstream.Update
	seq        uint64                        // What the current Envoy must have before the kernel may follow.
	requires   map[string]string             // Clusters, with their assignments, that the kernel will lead traffic to.
	removals   map[string]cache.Contribution // Removals from Envoy, once the kernel leads nothing there any more.
	began      time.Time
	deadline   time.Time
	committing bool // The kernel has been given it.
	span       commitSpan
}

func newPendingChange() *pendingChange {
	now := time.Now()
	return &pendingChange{removals: map[string]cache.Contribution{}, began: now, deadline: now.Add(envoyTimeout)}
}

func newReconciler(config Config, log *slog.Logger, up *upstream.Client, table *dataplane.Table) *reconciler {
	o := &reconciler{
		config: config, log: log, upstream: up, table: table,
		requests: make(chan *launcher.Request), acked: make(chan struct{}, 1), disturbed: make(chan struct{}, 1), links: make(chan struct{}, 1),
	}
	o.cache = cache.New(cache.Config{Observer: ackObserver{o}})
	o.desired = newDesiredState(config, log)
	o.instances = newInstances(config, log)
	o.checks = healthcheck.New(func() bool { return o.status.Load().healthy }, log)
	o.status.Store(&Status{Node: config.Node, Since: time.Now()})
	return o
}

// run carries out changes until ctx ends.
func (r *reconciler) run(ctx context.Context) error {
	if err := r.start(); err != nil {
		return err
	}
	inspect := time.NewTicker(resyncInterval)
	defer inspect.Stop()
	for {
		updates := r.upstream.Updates()
		if r.pending != nil && r.pending.committing {
			updates = nil // The kernel is at it; upstream merges what comes meanwhile.
		}
		select {
		case <-ctx.Done():
			return nil
		case u := <-updates:
			r.receive(ctx, u)
		case request := <-r.requests:
			r.admit(ctx, request)
		case <-r.acked:
		case <-r.links:
			r.instances.removeDead()
			r.updatePods()
			r.checkBridges(ctx, false)
		case <-r.disturbed:
			if !r.table.Intact(ctx) {
				r.log.Warn("someone changed Fairlead's nftables table; writing it anew")
				r.table.Forget()
			}
			r.checkBridges(ctx, true)
		case <-r.instances.probeTimer(r.cache.Applied):
		case <-r.changeTimer():
		case <-r.holdTimer():
		case <-r.flowTimer():
			r.table.LookAgain(time.Now())
		case <-r.listenTimer():
		case <-inspect.C:
			r.resync(ctx)
			r.checkBridges(ctx, true)
		}
		r.reconcile(ctx)
	}
}

// resync repairs state for whose changes no event comes.
func (r *reconciler) resync(ctx context.Context) {
	r.instances.removeDead()
	r.instances.repair()
	r.look(ctx, r.table, r.log)
	r.desired.outdated = true // An address may have come or gone.
	r.updatePods()
}

// updatePods takes in which pods have come or gone, as far as the kernel and Envoy have to know.
func (r *reconciler) updatePods() {
	r.desired.findPodLinks()
	units := map[string]cache.Contribution{}
	if r.hold == nil {
		r.desired.listeners(units, units)
	}
	if len(units) > 0 {
		r.cache.Publish(cache.Update{Contributions: units})
	}
}

// start takes in how the node forwarded last.
func (r *reconciler) start() error {
	if err := r.instances.adopt(); err != nil {
		return err
	}
	r.pending = newPendingChange()
	r.hold = &startupHold{units: map[string]cache.Contribution{}, running: slices.Clone(r.instances.live), until: time.Now().Add(holdTimeout)}
	loaded := r.upstream.Loaded()
	for _, typeURL := range types {
		for _, resource := range loaded[typeURL] {
			r.desired.receivedTypes[typeURL] = true
			r.desired.set(typeURL, resource, r.hold.units)
		}
	}
	r.desired.findPodLinks()
	r.desired.listeners(r.hold.units, r.pending.removals)
	return nil
}

// startupHold is what is not served yet after the agent's start. An Envoy and a table that an earlier agent left are newer than the
// last good state on disk, which is written a moment after the node forwards by it: they are only replaced by what a control
// plane has to add to that state, or when none answers. And Envoys are not served a world without Services, of which they
// would forget theirs.
type startupHold struct {
	units   map[string]cache.Contribution
	running []envoyns.ID // Envoys that were running.
	until   time.Time
}

// over reports whether there is nothing more to wait for.
func (h *startupHold) over(known bool, live []envoyns.ID, up upstream.Status) bool {
	running := slices.ContainsFunc(h.running, func(id envoyns.ID) bool { return slices.Contains(live, id) })
	switch {
	case !known:
		return false
	case !running || time.Now().After(h.until):
		return true
	default:
		// What a control plane has to add follows at once when a stream opens; that it has nothing, it does not say.
		return up.Connected && time.Since(up.Since) > settleTime
	}
}

// serveHeld serves what was held, if there is nothing more to wait for.
func (r *reconciler) serveHeld(ctx context.Context) {
	if r.hold == nil || !r.hold.over(r.desired.receivedTypes[envoy.FrontendType], r.instances.live, r.upstream.Status()) {
		return
	}
	_ = r.commitBridges(ctx) // The commit tries again, and says so.
	r.pending.seq = r.cache.Publish(cache.Update{Contributions: r.hold.units})
	r.pending.deadline = time.Now().Add(envoyTimeout)
	r.hold = nil
}

// receive takes an update, and what else has arrived with it, into the change at hand. Of each type one update at most is handed
// out before it is answered, so a change stays small; and the endpoints that a change waits for may be in the next update.
func (r *reconciler) receive(ctx context.Context, u upstream.Update) {
	if r.pending == nil {
		r.pending = newPendingChange()
	}
	c := r.pending
	units := map[string]cache.Contribution{}
	for more := true; more; {
		c.updates = append(c.updates, u)
		r.desired.receivedTypes[u.Type] = true // A response without resources counts, too.
		for _, resource := range u.Changed {
			r.desired.set(u.Type, resource, units)
			c.span.follow(r.tracer, resource.Traceparent, r.config.Node)
		}
		for _, name := range u.Removed {
			r.desired.remove(u.Type, name, c.removals)
		}
		select {
		case u = <-r.upstream.Updates():
		default:
			more = false
		}
	}
	if r.desired.outdated {
		r.desired.findPodLinks() // The node's addresses tell its uplinks.
	}
	r.desired.listeners(units, c.removals)
	for id := range units {
		delete(c.removals, id)
	}
	c.requires = r.desired.requires()
	if r.hold != nil {
		maps.Copy(r.hold.units, units)
		maps.DeleteFunc(r.hold.units, func(id string, _ cache.Contribution) bool { _, gone := c.removals[id]; return gone })
		return
	}
	_ = r.commitBridges(ctx) // The commit tries again, and says so.
	c.seq = r.cache.Publish(cache.Update{Contributions: units})
}

// commitBridges brings the table for pods on bridges up to date, before Envoy dials a new endpoint on one.
func (r *reconciler) commitBridges(ctx context.Context) error {
	err := r.desired.bridges(ctx)
	if err != nil && ctx.Err() == nil {
		r.log.Error("pods on a bridge may get no answer from endpoints on it", "error", err)
	}
	return err
}

// checkBridges has the table for pods on bridges written anew if it is not what it should be.
func (r *reconciler) checkBridges(ctx context.Context, table bool) {
	if err := r.desired.checkBridges(ctx, table); err != nil {
		r.log.Error("the bridges of the host cannot be seen", "error", err)
	}
	r.reflect()
}

// reflect lets pods on bridges reach themselves by direct frontends, if there are such.
func (r *reconciler) reflect() {
	if len(r.desired.directs.sets) == 0 {
		return
	}
	if err := r.desired.directs.reflectors.reflect(); err != nil {
		r.log.Error("pods on a bridge may not reach themselves", "error", err)
	}
}

// reconcile carries out what nothing has to be waited for.
func (r *reconciler) reconcile(ctx context.Context) {
	if r.serveHeld(ctx); r.hold != nil {
		r.updateStatus(nil)
		return
	}
	r.instances.promote(r.cache.Applied)
	c := r.pending
	follow := c != nil && r.mayCommit(c)
	if follow {
		c.committing = true
		before := len(r.desired.directs.sets)
		if r.desired.apply(r.table); before == 0 {
			r.reflect()
		}
	}
	err := r.commit(ctx)
	// A change that the kernel does not take is tried again for a while before the control plane hears of it.
	if follow && (err == nil || time.Since(c.began) > commitTimeout) {
		r.pending = nil
		r.finish(ctx, c, err)
	}
	r.commitFailed = err != nil
	if err == nil {
		err = r.obstacle.error()
	}
	r.updateStatus(err)
	r.checks.Serve(r.desired.checks())
}

// listenTimer returns a channel that fires when it is worth trying again to listen where it failed.
func (r *reconciler) listenTimer() <-chan time.Time {
	if len(r.checks.Problems()) == 0 {
		return nil
	}
	return time.After(retryInterval)
}

// finish takes from Envoy what the kernel leads nothing to any more, and answers the control plane.
func (r *reconciler) finish(ctx context.Context, c *pendingChange, err error) {
	if len(c.removals) > 0 {
		r.cache.Publish(cache.Update{Contributions: c.removals})
	}
	c.span.end(err)
	if err == nil {
		r.committedAt = time.Now()
	}
	if err == nil && len(c.updates) > 0 {
		r.instruments.program.Record(ctx, time.Since(c.began).Seconds())
	}
	for _, u := range c.updates {
		if err != nil {
			r.upstream.Nack(u, err)
		} else {
			r.upstream.Ack(u)
		}
	}
}

// mayCommit reports whether a change may go to the kernel: Envoy has what traffic is about to be led to.
func (r *reconciler) mayCommit(c *pendingChange) bool {
	if c.committing || r.instances.current == 0 || r.envoyHas(c) {
		return true
	}
	if time.Now().Before(c.deadline) {
		return false
	}
	r.log.Error("Envoy does not take a change; the kernel goes ahead without it", "generation", r.instances.current)
	return true
}

// envoyHas reports whether the current Envoy has what a change leads traffic to. That it has all assignments that it asked
// for is not enough: it may not have asked yet for that of a new cluster.
func (r *reconciler) envoyHas(c *pendingChange) bool {
	if !r.instances.hasResources(r.instances.current, c.seq, r.cache.Applied) {
		return false
	}
	id := envoyID(r.config.Node, r.instances.current)
	for cluster, assignment := range c.requires {
		if !r.cache.Has(id, envoy.ClusterType, cluster) || !r.cache.Has(id, envoy.AssignmentType, assignment) {
			return false
		}
		delete(c.requires, cluster)
	}
	return true
}

// changeTimer returns a channel that fires when the change at hand has waited long enough for Envoy, or when the kernel is to be
// asked once more.
func (r *reconciler) changeTimer() <-chan time.Time {
	switch {
	case r.hold != nil:
		return nil
	case r.commitFailed:
		return time.After(retryInterval)
	case r.pending != nil:
		return time.After(time.Until(r.pending.deadline))
	default:
		return nil
	}
}

// flowTimer returns a channel that fires when the kernel's table has to look for flows again.
func (r *reconciler) flowTimer() <-chan time.Time {
	if at := r.table.NextLook(); !at.IsZero() {
		return time.After(time.Until(at))
	}
	return nil
}

// holdTimer returns a channel that fires when it is worth looking whether the hold is over.
func (r *reconciler) holdTimer() <-chan time.Time {
	if r.hold == nil || !r.desired.receivedTypes[envoy.FrontendType] {
		return nil
	}
	return time.After(settleTime / 4)
}

// commit brings the kernel's tables up to date, once there is something that they can be made from.
func (r *reconciler) commit(ctx context.Context) error {
	if !r.desired.isSynced() {
		return nil
	}
	r.table.SetNode(r.desired.dataplaneNode())
	r.table.SetInstances(r.instances.dataplane())
	changed := r.table.Dirty()
	err := r.table.Commit(ctx)
	if err != nil && ctx.Err() == nil {
		r.log.Error("the kernel's table is not up to date", "error", err)
	}
	if err == nil && changed && r.looked {
		r.look(ctx, r.table, r.log)
	}
	return errors.Join(r.commitBridges(ctx), err)
}

// admit lets a new Envoy start. What was built for one that cannot, or whose proxy left meanwhile, is undone: it must not
// take the place of an Envoy that lives.
func (r *reconciler) admit(ctx context.Context, request *launcher.Request) {
	id, err := r.instances.start(int(request.Namespace.Fd()), r.desired.addresses())
	if err != nil {
		r.reject(request, err)
		return
	}
	bootstrap, err := Bootstrap(r.config.Node, r.config.RunDir, id).JSON()
	if err == nil {
		// The table must know the Envoy instance's links before the first packet comes from them.
		err = r.commit(ctx)
	}
	if err != nil {
		r.instances.abort(id)
		r.reject(request, err)
		return
	}
	if err := request.Accept(bootstrap); err != nil {
		r.instances.abort(id)
		r.log.Warn("a proxy left before it was answered", "generation", id, "error", err)
	}
}

// reject tells a proxy why its Envoy cannot start.
func (r *reconciler) reject(request *launcher.Request, why error) {
	r.log.Error("cannot start an Envoy", "error", why)
	if err := request.Refuse(why); err != nil {
		r.log.Warn("a proxy left before it was answered", "error", err)
	}
}

// ackObserver wakes the reconciler when an Envoy answers.
type ackObserver struct{ *reconciler }

// Acked implements cache.Observer.
func (o ackObserver) Acked(_, _ string, _, _ uint64) { o.wake() }

// Nacked implements cache.Observer.
func (o ackObserver) Nacked(node, typeURL, detail string) {
	o.log.Error("Envoy rejects a resource", "envoy", node, "type", typeURL, "detail", detail)
	o.instruments.nacks.Add(context.Background(), 1)
	o.wake()
}

func (o ackObserver) wake() {
	select {
	case o.acked <- struct{}{}:
	default:
	}
}
