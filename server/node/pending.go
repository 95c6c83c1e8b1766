package node

import (
	"context"
	"maps"
	"time"

	"github.com/fairlead/fairlead/cache"
	"github.com/fairlead/fairlead/server/node/upstream"
	"github.com/fairlead/fairlead/translate/envoy"
)

// pendingChange is one batch of updates that is being applied.
type pendingChange struct {
	updates    []upstream.Update
	seq        uint64                        // Publish that the current Envoy must have acknowledged before the commit.
	requires   map[string]string             // Clusters, with their assignments, to which the commit sends traffic.
	removals   map[string]cache.Contribution // Removals from Envoy, published once the kernel sends nothing there any more.
	began      time.Time
	deadline   time.Time
	committing bool // Its frontends are set in the table.
	span       commitSpan
}

func newPendingChange() *pendingChange {
	now := time.Now()
	return &pendingChange{removals: map[string]cache.Contribution{}, began: now, deadline: now.Add(envoyTimeout)}
}

// receive merges an update, and all that wait behind it, into the pending change. Upstream sends at most one update of each type
// before its answer, so a change stays small; and the endpoints for which a change waits may be in the next update.
func (r *reconciler) receive(ctx context.Context, u upstream.Update) {
	if r.pending == nil {
		r.pending = newPendingChange()
	}
	c := r.pending
	resources := map[string]cache.Contribution{}
	for more := true; more; {
		c.updates = append(c.updates, u)
		r.desired.receivedTypes[u.Type] = true // A response without resources counts, too.
		for _, resource := range u.Changed {
			r.desired.set(u.Type, resource, resources)
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
		r.desired.findPodLinks() // A link with one of the node's addresses is an uplink.
	}
	r.desired.listeners(resources)
	for id := range resources {
		delete(c.removals, id)
	}
	c.requires = r.desired.requires()
	if r.hold != nil {
		maps.Copy(r.hold.resources, resources)
		maps.DeleteFunc(r.hold.resources, func(id string, _ cache.Contribution) bool { _, gone := c.removals[id]; return gone })
		return
	}
	_ = r.commitBridges(ctx) // An error is logged, and the commit retries.
	c.seq = r.cache.Publish(cache.Update{Contributions: resources})
}

// finish removes from Envoy the resources to which the kernel sends nothing any more, and answers the control plane.
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

// mayCommit reports whether a change may be committed to the kernel: Envoy has the clusters to which it sends traffic.
func (r *reconciler) mayCommit(c *pendingChange) bool {
	if c.committing || r.instances.current == 0 || r.envoyHas(c) {
		return true
	}
	if time.Now().Before(c.deadline) {
		return false
	}
	r.log.Error("Envoy has not acknowledged a change in time; committing it to the kernel", "generation", r.instances.current)
	return true
}

// envoyHas reports whether the current Envoy has acknowledged the clusters to which a change sends traffic. That it has all
// assignments to which it has subscribed is not enough: it may not have subscribed yet to that of a new cluster.
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

// changeTimer returns a channel that fires when the pending change has waited long enough for Envoy, or when a failed commit is
// due again.
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
