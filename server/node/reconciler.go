package node

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/fairlead/fairlead/cache"
	"github.com/fairlead/fairlead/server/node/dataplane"
	"github.com/fairlead/fairlead/server/node/envoyns"
	"github.com/fairlead/fairlead/server/node/healthcheck"
	"github.com/fairlead/fairlead/server/node/launcher"
	"github.com/fairlead/fairlead/server/node/upstream"
	"github.com/fairlead/fairlead/translate/frontendpb"
	"github.com/fairlead/fairlead/translate/model"
)

// Waits of the reconciler.
const (
	// envoyTimeout is how long a change waits for the current Envoy's ACK before the agent commits it to the kernel without. An
	// Envoy that hangs must not keep the node from refusing connections to a Service without endpoints.
	envoyTimeout = 10 * time.Second
	// commitTimeout is how long commits of a change may fail before the agent NACKs it to the control plane, and retryInterval
	// how often it retries.
	commitTimeout = 30 * time.Second
	retryInterval = time.Second
	// holdTimeout is how long an agent that starts beside a running Envoy waits for a control plane, and settleTime how long it
	// waits, once the stream is open, for the control plane's responses.
	holdTimeout = 3 * time.Second
	settleTime  = 300 * time.Millisecond
	// resyncInterval is how often the agent compares the table, links, routes and rules with what they should be, whatever the
	// kernel has notified.
	resyncInterval = 30 * time.Second
	// probeInterval is how often an Envoy that has acknowledged its resources is probed for readiness.
	probeInterval = 20 * time.Millisecond
)

// reconciler owns the state of the node. All others send to it by channel, and it applies one change after the other: to Envoy
// first where the change adds traffic, to the kernel first where it removes traffic.
type reconciler struct {
	config       Config
	log          *slog.Logger
	upstream     *upstream.Client
	cache        *cache.Cache // The resources that the agent serves to the node's Envoys.
	table        *dataplane.Table
	desired      *desiredState
	instances    *instances
	checks       *healthcheck.Server
	failingSince time.Time // Since when commits to the kernel fail; zero: the last one succeeded.

	requests chan *launcher.Request
	acked    chan struct{}      // An Envoy has sent an ACK or NACK.
	monitor  *dataplane.Monitor // Hears of what others do to the kernel's tables.
	changes  envoyns.Changes
	damage   damage // What others took away.
	pulses   chan pulse

	hold         *startupHold   // Nil once the agent serves its Envoys.
	pending      *pendingChange // Being applied; nil between changes.
	commitFailed bool           // The last commit failed; the agent retries it, with or without a change.

	committedAt time.Time // When the agent last committed a change.
	obstacle              // What other programs do to the node's Service traffic.

	found    chan []model.Problem // What stands in the way on the node, when that has changed.
	inTheWay []model.Problem      // What was found last.

	tracer      trace.Tracer
	instruments *instruments
	status      atomic.Pointer[Status] // Read by other goroutines.
}

func newReconciler(config Config, log *slog.Logger, up *upstream.Client, table *dataplane.Table) *reconciler {
	o := &reconciler{
		config: config, log: log, upstream: up, table: table, monitor: table.Monitor(),
		found:    make(chan []model.Problem),
		requests: make(chan *launcher.Request), acked: make(chan struct{}, 1), changes: envoyns.NewChanges(), damage: newDamage(), pulses: make(chan pulse),
	}
	o.cache = cache.New(cache.Config{Observer: ackObserver{o}})
	o.desired = newDesiredState(config, log)
	o.desired.bridged.monitor = table.Monitor()
	o.instances = newInstances(config, log)
	o.checks = healthcheck.New(func() bool { return o.status.Load().healthy }, log)
	starting := &Status{Node: config.Node, Since: time.Now(), report: frontendpb.Report{NotReady: "the agent is starting", Since: time.Now()}}
	o.status.Store(starting)
	up.Report(starting.report)
	return o
}

// run applies changes until ctx ends.
func (r *reconciler) run(ctx context.Context) error {
	if err := r.start(ctx); err != nil {
		return err
	}
	inspect := time.NewTicker(resyncInterval)
	defer inspect.Stop()
	for {
		updates := r.upstream.Updates()
		if r.pending != nil && r.pending.committing {
			updates = nil // A commit is being retried; upstream merges later responses.
		}
		select {
		case <-ctx.Done():
			return nil
		case u := <-updates:
			r.receive(ctx, u)
		case request := <-r.requests:
			r.admit(ctx, request)
		case <-r.acked:
		case r.inTheWay = <-r.found:
		case <-r.changes.Links:
			r.instances.removeDead()
			r.desired.findPodLinks()
			r.checkBridges(ctx, false)
		case <-r.changes.Damaged:
			r.damage.links = true
		case <-r.monitor.Disturbed:
			r.hear(ctx)
		case <-r.damage.timer():
		case found := <-r.pulses:
			r.instances.feel(found)
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
		r.mend(ctx)
		r.reconcile(ctx)
	}
}

// resync repairs state for whose changes the kernel sends no event, or whose event was lost.
func (r *reconciler) resync(ctx context.Context) {
	r.damage.links = true
	r.compare()
	r.look(ctx, r.table, r.log)
	r.desired.findPodLinks()
	r.desired.splice.inspect()
	r.desired.outdated = true // The node's addresses may have changed.
	if r.hold != nil {
		return
	}
	resources := map[string]cache.Contribution{}
	if r.desired.listeners(resources); len(resources) > 0 {
		r.cache.Publish(cache.Update{Contributions: resources})
	}
}

// commitBridges updates the table for bridges, before Envoy dials a new endpoint on one.
func (r *reconciler) commitBridges(ctx context.Context) error {
	err := r.desired.bridges(ctx)
	if err != nil && ctx.Err() == nil {
		r.log.Error("cannot program the bridge table: pods may get no answer from endpoints on their own bridge", "error", err)
	}
	return err
}

// checkBridges has the next commit write the table for bridges again if it differs from what the bridges need.
func (r *reconciler) checkBridges(ctx context.Context, table bool) {
	if err := r.desired.checkBridges(ctx, table); err != nil {
		r.log.Error("cannot list the bridges of the host", "error", err)
	}
	r.reflect()
}

// reflect lets pods on bridges reach themselves by direct frontends, if there are any.
func (r *reconciler) reflect() {
	if len(r.desired.directs.sets) == 0 {
		return
	}
	if err := r.desired.directs.reflectors.reflect(); err != nil {
		r.log.Error("cannot set hairpin mode: pods on a bridge may not reach themselves through a Service", "error", err)
	}
}

// reconcile applies everything that need not wait for Envoy or the control plane.
func (r *reconciler) reconcile(ctx context.Context) {
	if r.serveHeld(ctx); r.hold != nil {
		r.updateStatus(r.instances.hung())
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
	// A commit that fails is retried until commitTimeout before the agent NACKs the change.
	if follow && (err == nil || time.Since(c.began) > commitTimeout) {
		r.pending = nil
		r.finish(ctx, c, err)
	}
	r.commitFailed = err != nil
	if err == nil {
		err = cmp.Or(r.instances.hung(), r.obstacle.error())
	}
	r.updateStatus(err)
	r.checks.Serve(r.desired.checks())
}

// listenTimer returns a channel that fires when the health checks that cannot listen are to be retried.
func (r *reconciler) listenTimer() <-chan time.Time {
	if len(r.checks.Problems()) == 0 {
		return nil
	}
	return time.After(retryInterval)
}

// flowTimer returns a channel that fires when the table has to look for UDP flows again.
func (r *reconciler) flowTimer() <-chan time.Time {
	if at := r.table.NextLook(); !at.IsZero() {
		return time.After(time.Until(at))
	}
	return nil
}

// commit programs the kernel's tables, once the agent has the frontends.
func (r *reconciler) commit(ctx context.Context) error {
	if !r.desired.isSynced() {
		return nil
	}
	r.table.SetNode(r.desired.dataplaneNode())
	r.table.SetInstances(r.instances.dataplane())
	changed := r.table.Dirty()
	err := r.table.Commit(ctx)
	if err != nil && ctx.Err() == nil {
		r.log.Error("cannot program nftables", "error", err)
	}
	if err == nil {
		r.desired.splice.commit(r.instances.dataplane(), r.desired.listenersFor, r.log)
	}
	if err == nil && changed && r.looked {
		r.look(ctx, r.table, r.log)
	}
	return errors.Join(r.commitBridges(ctx), err)
}
