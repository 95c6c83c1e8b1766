package node

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/fairlead/fairlead/cache"
	"github.com/fairlead/fairlead/server/node/dataplane"
	"github.com/fairlead/fairlead/server/node/healthcheck"
	"github.com/fairlead/fairlead/server/node/launcher"
	"github.com/fairlead/fairlead/server/node/upstream"
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
	resources := map[string]cache.Contribution{}
	if r.hold == nil {
		r.desired.listeners(resources, resources)
	}
	if len(resources) > 0 {
		r.cache.Publish(cache.Update{Contributions: resources})
	}
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

// flowTimer returns a channel that fires when the kernel's table has to look for flows again.
func (r *reconciler) flowTimer() <-chan time.Time {
	if at := r.table.NextLook(); !at.IsZero() {
		return time.After(time.Until(at))
	}
	return nil
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
