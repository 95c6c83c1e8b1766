package node

import (
	"context"
	"slices"
	"time"

	"github.com/fairlead/fairlead/cache"
	"github.com/fairlead/fairlead/server/node/envoyns"
	"github.com/fairlead/fairlead/server/node/upstream"
	"github.com/fairlead/fairlead/translate/envoy"
)

// start loads how the node forwarded last: the Envoys that run, and the last good state.
func (r *reconciler) start(ctx context.Context) error {
	if err := r.instances.adopt(); err != nil {
		return err
	}
	r.desired.splice.open(r.config, r.log)
	r.pending = newPendingChange()
	r.hold = &startupHold{resources: map[string]cache.Contribution{}, running: slices.Clone(r.instances.live), until: time.Now().Add(holdTimeout)}
	loaded := r.upstream.Loaded()
	for _, typeURL := range types {
		for _, resource := range loaded[typeURL] {
			r.desired.receivedTypes[typeURL] = true
			r.desired.set(typeURL, resource, r.hold.resources)
		}
	}
	r.desired.findPodLinks()
	r.desired.listeners(r.hold.resources)
	r.damage.links = true
	r.mend(ctx)
	r.restore(ctx)
	return nil
}

// startupHold holds what the agent does not serve yet after its start. An Envoy and a table that an earlier agent left are newer
// than the last good state on disk, which upstream writes a moment after the node forwards by it: the agent replaces them only
// once a control plane has added to that state, or when none answers. Nor does it serve Envoys an empty set of resources, for
// which they would drop their own.
type startupHold struct {
	resources map[string]cache.Contribution
	running   []envoyns.ID // Envoys that ran when the agent started.
	until     time.Time
}

// over reports whether the agent has nothing more to wait for.
func (h *startupHold) over(known bool, live []envoyns.ID, up upstream.Status) bool {
	running := slices.ContainsFunc(h.running, func(id envoyns.ID) bool { return slices.Contains(live, id) })
	switch {
	case !known:
		return false
	case !running || time.Now().After(h.until):
		return true
	default:
		// A control plane sends its responses at once when a stream opens; it sends none if it has nothing to add.
		return up.Connected && time.Since(up.Since) > settleTime
	}
}

// serveHeld publishes the held resources once the hold is over.
func (r *reconciler) serveHeld(ctx context.Context) {
	if r.hold == nil || !r.hold.over(r.desired.receivedTypes[envoy.FrontendType], r.instances.live, r.upstream.Status()) {
		return
	}
	_ = r.commitBridges(ctx) // An error is logged, and the commit retries.
	r.pending.seq = r.cache.Publish(cache.Update{Contributions: r.hold.resources})
	r.pending.deadline = time.Now().Add(envoyTimeout)
	r.hold = nil
}

// holdTimer returns a channel that fires when the agent is to check whether the hold is over.
func (r *reconciler) holdTimer() <-chan time.Time {
	if r.hold == nil || !r.desired.receivedTypes[envoy.FrontendType] {
		return nil
	}
	return time.After(settleTime / 4)
}
