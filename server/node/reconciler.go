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

// Waits of the owner.
const (
	// envoyPatience is how long a change waits for the current Envoy before the kernel follows without it. An Envoy that
	// hangs must not keep the node from refusing what has no endpoints.
	envoyPatience = 10 * time.Second
	// kernelPatience is how long the kernel may refuse a change before the control plane is told, and retry how often it
	// is asked.
	kernelPatience = 30 * time.Second
	retry          = time.Second
	// holdPatience is how long an agent that starts beside a running Envoy waits for a control plane, and settled how long
	// after the stream has opened all that it has to add has come.
	holdPatience = 3 * time.Second
	settled      = 300 * time.Millisecond
	// inspection is how often links, routes and rules are put right, whatever the kernel told.
	inspection = 30 * time.Second
	// warmth is how often a new Envoy that has all its resources is tried out.
	warmth = 20 * time.Millisecond
)

// owner owns the state of the node. Everything else tells it by channel, and one change after the other is carried out:
// Envoy first where traffic is to be led to it, the kernel first where it is to be led away.
type owner struct {
	config      Config
	log         *slog.Logger
	upstream    *upstream.Client
	cache       *cache.Cache // What the node's Envoys are served.
	table       *dataplane.Table
	node        *node
	generations *generations
	checks      *healthcheck.Server
	failing     time.Time // Since when the kernel does not take the table; zero: it does.

	requests  chan *launcher.Request
	acked     chan struct{} // An Envoy has answered.
	disturbed chan struct{} // Something was deleted from the kernel's table.
	links     chan struct{} // A generation's link is gone, or a bridge is another than before.

	hold   *hold   // Nil once the agent serves.
	change *change // Being carried out; nil between changes.
	failed bool    // The kernel did not take all that it should have; it is asked again, change or none.

	updated  time.Time // When the kernel last took a change.
	obstacle           // What others do to the node's Service traffic.

	tracer      trace.Tracer
	instruments *instruments
	status      atomic.Pointer[Status] // For others to read.
}

// change is what one batch of updates asks for.
type change struct {
	updates   []upstream.Update
	seq       uint64                // What the current Envoy must have before the kernel may follow.
	needs     map[string]string     // Clusters, with their assignments, that the kernel will lead traffic to.
	breaking  map[string]cache.Unit // Removals from Envoy, once the kernel leads nothing there any more.
	began     time.Time
	patience  time.Time
	following bool // The kernel is following.
	span      commitSpan
}

func newChange() *change {
	now := time.Now()
	return &change{breaking: map[string]cache.Unit{}, began: now, patience: now.Add(envoyPatience)}
}

func newOwner(config Config, log *slog.Logger, up *upstream.Client, table *dataplane.Table) *owner {
	o := &owner{
		config: config, log: log, upstream: up, table: table,
		requests: make(chan *launcher.Request), acked: make(chan struct{}, 1), disturbed: make(chan struct{}, 1), links: make(chan struct{}, 1),
	}
	o.cache = cache.New(cache.Config{Observer: ackObserver{o}})
	o.node = newNode(config, log)
	o.generations = newGenerations(config, log)
	o.checks = healthcheck.New(func() bool { return o.status.Load().healthy }, log)
	o.status.Store(&Status{Node: config.Node, Since: time.Now()})
	return o
}

// run carries out changes until ctx ends.
func (o *owner) run(ctx context.Context) error {
	if err := o.start(); err != nil {
		return err
	}
	inspect := time.NewTicker(inspection)
	defer inspect.Stop()
	for {
		updates := o.upstream.Updates()
		if o.change != nil && o.change.following {
			updates = nil // The kernel is at it; upstream merges what comes meanwhile.
		}
		select {
		case <-ctx.Done():
			return nil
		case u := <-updates:
			o.take(ctx, u)
		case r := <-o.requests:
			o.join(ctx, r)
		case <-o.acked:
		case <-o.links:
			o.generations.inspect()
			o.findPods()
			o.checkBridges(ctx, false)
		case <-o.disturbed:
			if !o.table.Intact(ctx) {
				o.log.Warn("someone changed Fairlead's nftables table; writing it anew")
				o.table.Forget()
			}
			o.checkBridges(ctx, true)
		case <-o.generations.retry(o.cache.Applied):
		case <-o.patience():
		case <-o.held():
		case <-o.nextLook():
			o.table.LookAgain(time.Now())
		case <-o.unserved():
		case <-inspect.C:
			o.inspect(ctx)
			o.checkBridges(ctx, true)
		}
		o.proceed(ctx)
	}
}

// inspect puts right what nothing tells of.
func (o *owner) inspect(ctx context.Context) {
	o.generations.inspect()
	o.generations.repair()
	o.look(ctx, o.table, o.log)
	o.node.moved = true // An address may have come or gone.
	o.findPods()
}

// findPods takes in which pods have come or gone, as far as the kernel and Envoy have to know.
func (o *owner) findPods() {
	o.node.findPodLinks()
	units := map[string]cache.Unit{}
	if o.hold == nil {
		o.node.listeners(units, units)
	}
	if len(units) > 0 {
		o.cache.Publish(cache.Update{Units: units})
	}
}

// start takes in how the node forwarded last.
func (o *owner) start() error {
	if err := o.generations.adopt(); err != nil {
		return err
	}
	o.change = newChange()
	o.hold = &hold{units: map[string]cache.Unit{}, running: slices.Clone(o.generations.live), until: time.Now().Add(holdPatience)}
	loaded := o.upstream.Loaded()
	for _, typeURL := range types {
		for _, r := range loaded[typeURL] {
			o.node.heard[typeURL] = true
			o.node.set(typeURL, r, o.hold.units)
		}
	}
	o.node.findPodLinks()
	o.node.listeners(o.hold.units, o.change.breaking)
	return nil
}

// hold is what is not served yet after the agent's start. An Envoy and a table that an earlier agent left are newer than the
// last good state on disk, which is written a moment after the node forwards by it: they are only replaced by what a control
// plane has to add to that state, or when none answers. And Envoys are not served a world without Services, of which they
// would forget theirs.
type hold struct {
	units   map[string]cache.Unit
	running []envoyns.ID // Envoys that were running.
	until   time.Time
}

// over reports whether there is nothing more to wait for.
func (h *hold) over(known bool, live []envoyns.ID, up upstream.Status) bool {
	running := slices.ContainsFunc(h.running, func(id envoyns.ID) bool { return slices.Contains(live, id) })
	switch {
	case !known:
		return false
	case !running || time.Now().After(h.until):
		return true
	default:
		// What a control plane has to add follows at once when a stream opens; that it has nothing, it does not say.
		return up.Connected && time.Since(up.Since) > settled
	}
}

// release serves what was held, if there is nothing more to wait for.
func (o *owner) release(ctx context.Context) {
	if o.hold == nil || !o.hold.over(o.node.heard[envoy.FrontendType], o.generations.live, o.upstream.Status()) {
		return
	}
	_ = o.liftBridges(ctx) // The commit tries again, and says so.
	o.change.seq = o.cache.Publish(cache.Update{Units: o.hold.units})
	o.change.patience = time.Now().Add(envoyPatience)
	o.hold = nil
}

// take takes an update, and what else has arrived with it, into the change at hand. Of each type one update at most is handed
// out before it is answered, so a change stays small; and the endpoints that a change waits for may be in the next update.
func (o *owner) take(ctx context.Context, u upstream.Update) {
	if o.change == nil {
		o.change = newChange()
	}
	c := o.change
	units := map[string]cache.Unit{}
	for more := true; more; {
		c.updates = append(c.updates, u)
		o.node.heard[u.Type] = true // Also that there is nothing of a type is heard.
		for _, r := range u.Changed {
			o.node.set(u.Type, r, units)
			c.span.follow(o.tracer, r.Traceparent, o.config.Node)
		}
		for _, name := range u.Removed {
			o.node.remove(u.Type, name, c.breaking)
		}
		select {
		case u = <-o.upstream.Updates():
		default:
			more = false
		}
	}
	if o.node.moved {
		o.node.findPodLinks() // The node's addresses tell its uplinks.
	}
	o.node.listeners(units, c.breaking)
	for id := range units {
		delete(c.breaking, id)
	}
	c.needs = o.node.needs()
	if o.hold != nil {
		maps.Copy(o.hold.units, units)
		maps.DeleteFunc(o.hold.units, func(id string, _ cache.Unit) bool { _, gone := c.breaking[id]; return gone })
		return
	}
	_ = o.liftBridges(ctx) // The commit tries again, and says so.
	c.seq = o.cache.Publish(cache.Update{Units: units})
}

// liftBridges brings the table for pods on bridges up to date, before Envoy dials a new endpoint on one.
func (o *owner) liftBridges(ctx context.Context) error {
	err := o.node.bridges(ctx)
	if err != nil && ctx.Err() == nil {
		o.log.Error("pods on a bridge may get no answer from endpoints on it", "error", err)
	}
	return err
}

// checkBridges has the table for pods on bridges written anew if it is not what it should be.
func (o *owner) checkBridges(ctx context.Context, table bool) {
	if err := o.node.checkBridges(ctx, table); err != nil {
		o.log.Error("the bridges of the host cannot be seen", "error", err)
	}
	o.reflect()
}

// reflect lets pods on bridges reach themselves by direct frontends, if there are such.
func (o *owner) reflect() {
	if len(o.node.directs.sets) == 0 {
		return
	}
	if err := o.node.directs.reflectors.reflect(); err != nil {
		o.log.Error("pods on a bridge may not reach themselves", "error", err)
	}
}

// proceed carries out what nothing has to be waited for.
func (o *owner) proceed(ctx context.Context) {
	if o.release(ctx); o.hold != nil {
		o.note(nil)
		return
	}
	o.generations.promote(o.cache.Applied)
	c := o.change
	follow := c != nil && o.mayFollow(c)
	if follow {
		c.following = true
		before := len(o.node.directs.sets)
		if o.node.apply(o.table); before == 0 {
			o.reflect()
		}
	}
	err := o.commit(ctx)
	// A change that the kernel does not take is tried again for a while before the control plane hears of it.
	if follow && (err == nil || time.Since(c.began) > kernelPatience) {
		o.change = nil
		o.finish(ctx, c, err)
	}
	o.failed = err != nil
	if err == nil {
		err = o.obstacle.error()
	}
	o.note(err)
	o.checks.Serve(o.node.checks())
}

// unserved returns a channel that fires when it is worth trying again to listen where it failed.
func (o *owner) unserved() <-chan time.Time {
	if len(o.checks.Problems()) == 0 {
		return nil
	}
	return time.After(retry)
}

// finish takes from Envoy what the kernel leads nothing to any more, and answers the control plane.
func (o *owner) finish(ctx context.Context, c *change, err error) {
	if len(c.breaking) > 0 {
		o.cache.Publish(cache.Update{Units: c.breaking})
	}
	c.span.end(err)
	if err == nil {
		o.updated = time.Now()
	}
	if err == nil && len(c.updates) > 0 {
		o.instruments.program.Record(ctx, time.Since(c.began).Seconds())
	}
	for _, u := range c.updates {
		if err != nil {
			o.upstream.Nack(u, err)
		} else {
			o.upstream.Ack(u)
		}
	}
}

// mayFollow reports whether the kernel may follow a change: Envoy has what traffic is about to be led to.
func (o *owner) mayFollow(c *change) bool {
	if c.following || o.generations.current == 0 || o.envoyHas(c) {
		return true
	}
	if time.Now().Before(c.patience) {
		return false
	}
	o.log.Error("Envoy does not take a change; the kernel goes ahead without it", "generation", o.generations.current)
	return true
}

// envoyHas reports whether the current Envoy has what a change leads traffic to. That it has all assignments that it asked
// for is not enough: it may not have asked yet for that of a new cluster.
func (o *owner) envoyHas(c *change) bool {
	if !o.generations.has(o.generations.current, c.seq, o.cache.Applied) {
		return false
	}
	id := envoyID(o.config.Node, o.generations.current)
	for cluster, assignment := range c.needs {
		if !o.cache.Has(id, envoy.ClusterType, cluster) || !o.cache.Has(id, envoy.AssignmentType, assignment) {
			return false
		}
		delete(c.needs, cluster)
	}
	return true
}

// patience returns a channel that fires when the change at hand has waited long enough for Envoy, or when the kernel is to be
// asked once more.
func (o *owner) patience() <-chan time.Time {
	switch {
	case o.hold != nil:
		return nil
	case o.failed:
		return time.After(retry)
	case o.change != nil:
		return time.After(time.Until(o.change.patience))
	default:
		return nil
	}
}

// nextLook returns a channel that fires when the kernel's table has to look for flows again.
func (o *owner) nextLook() <-chan time.Time {
	if at := o.table.NextLook(); !at.IsZero() {
		return time.After(time.Until(at))
	}
	return nil
}

// held returns a channel that fires when it is worth looking whether the hold is over.
func (o *owner) held() <-chan time.Time {
	if o.hold == nil || !o.node.heard[envoy.FrontendType] {
		return nil
	}
	return time.After(settled / 4)
}

// commit brings the kernel's tables up to date, once there is something that they can be made from.
func (o *owner) commit(ctx context.Context) error {
	if !o.node.complete() {
		return nil
	}
	o.table.SetNode(o.node.kernelNode())
	o.table.SetGenerations(o.generations.kernel())
	changed := o.table.Dirty()
	err := o.table.Commit(ctx)
	if err != nil && ctx.Err() == nil {
		o.log.Error("the kernel's table is not up to date", "error", err)
	}
	if err == nil && changed && o.looked {
		o.look(ctx, o.table, o.log)
	}
	return errors.Join(o.liftBridges(ctx), err)
}

// join lets a new Envoy start. What was built for one that cannot, or whose proxy left meanwhile, is undone: it must not
// take the place of an Envoy that lives.
func (o *owner) join(ctx context.Context, r *launcher.Request) {
	id, err := o.generations.join(int(r.Namespace.Fd()), o.node.addresses())
	if err != nil {
		o.refuse(r, err)
		return
	}
	bootstrap, err := Bootstrap(o.config.Node, o.config.RunDir, id).JSON()
	if err == nil {
		// The table must know the generation's links before the first packet comes from them.
		err = o.commit(ctx)
	}
	if err != nil {
		o.generations.leave(id)
		o.refuse(r, err)
		return
	}
	if err := r.Accept(bootstrap); err != nil {
		o.generations.leave(id)
		o.log.Warn("a proxy left before it was answered", "generation", id, "error", err)
	}
}

// refuse tells a proxy why its Envoy cannot start.
func (o *owner) refuse(r *launcher.Request, why error) {
	o.log.Error("cannot start an Envoy", "error", why)
	if err := r.Refuse(why); err != nil {
		o.log.Warn("a proxy left before it was answered", "error", err)
	}
}

// ackObserver wakes the owner when an Envoy answers.
type ackObserver struct{ *owner }

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
