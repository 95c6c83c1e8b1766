package node

import (
	"context"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"golang.org/x/time/rate"

	"github.com/fairlead/fairlead/server/node/dataplane"
)

// damage is what other programs took from the kernel and the agent has not put back yet. The reconciler owns it.
type damage struct {
	links bool // An Envoy instance's links, addresses, routes or rules.
	table bool // Something of the nftables tables.

	// The agent repairs at once, but a program that removes again what it sees added must not make it spin.
	limit *rate.Limiter
}

// repairBurst is how many repairs follow one upon the other at once before there is one in each retryInterval. A network manager
// removes rule after rule, and each may be put back alone.
const repairBurst = 20

func newDamage() damage {
	return damage{limit: rate.NewLimiter(rate.Every(retryInterval), repairBurst)}
}

// timer returns a channel that fires when a repair that the limit has put off may be due.
func (d *damage) timer() <-chan time.Time {
	if d.links || d.table {
		return time.After(retryInterval / 10)
	}
	return nil
}

// hear notes what the monitor has heard of the tables.
func (r *reconciler) hear(ctx context.Context) {
	switch r.monitor.Look() {
	case dataplane.Disturbed:
		r.log.Warn("another program changed Fairlead's nftables tables; writing them again")
		r.damage.table = true
	case dataplane.MaybeDisturbed:
		r.compare()
		r.checkBridges(ctx, true)
	case dataplane.NoDisturbance:
	}
}

// compare notes damage that the kernel's table shows.
func (r *reconciler) compare() {
	if r.hold != nil {
		r.damage.table = true // restore compares.
		return
	}
	lacks, err := r.table.Damage()
	if err != nil {
		r.log.Warn("cannot compare the nftables table with what it should be", "error", err)
		return
	}
	if lacks != "" {
		r.log.Warn("the nftables table is not what the agent wrote; writing it again", "difference", lacks)
		r.damage.table = true
	}
}

// mend puts back what others took away, as far as the limit allows.
func (r *reconciler) mend(ctx context.Context) {
	if !r.damage.links && !r.damage.table || !r.damage.limit.Allow() {
		return
	}
	if r.damage.links {
		r.damage.links = false
		r.instances.removeDead()
		if r.instances.repair() {
			r.instruments.repaired(ctx, "links")
		}
	}
	if r.damage.table {
		r.damage.table = false
		r.checkBridges(ctx, true)
		if r.hold != nil {
			r.restore(ctx)
			return
		}
		r.table.Forget() // The next commit follows at once.
		r.instruments.repaired(ctx, "table")
	}
}

// restore puts back what the kernel's table lacks of the last good state, while the agent waits for a control plane. An intact
// table stays, since it may be newer than the state on disk, and so does that of a node without an Envoy, which forwards nothing.
func (r *reconciler) restore(ctx context.Context) {
	if r.instances.current == 0 || len(r.desired.frontends) == 0 {
		return
	}
	_ = r.commitBridges(ctx) // An error is logged, and the next commit retries.
	r.desired.apply(r.table)
	r.table.SetNode(r.desired.dataplaneNode())
	r.table.SetInstances(r.instances.dataplane())
	r.table.Forget() // Another than this agent may have written it.
	lacks, err := r.table.Damage()
	if err != nil {
		r.log.Warn("cannot compare the nftables table with the last good state", "error", err)
	}
	if lacks == "" {
		r.desired.retract()
		return
	}
	r.log.Warn("the nftables table lacks a part of the last good state; writing it again", "difference", lacks)
	r.instruments.repaired(ctx, "table")
	if r.commit(ctx) != nil {
		r.desired.retract() // The error is logged, and the hold ends soon.
	}
}

// repaired counts a repair.
func (i *instruments) repaired(ctx context.Context, what string) {
	i.repairs.Add(ctx, 1, metric.WithAttributes(attribute.String("what", what)))
}
