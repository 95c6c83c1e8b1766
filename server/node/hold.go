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

// start takes in how the node forwarded last.
func (r *reconciler) start() error {
	if err := r.instances.adopt(); err != nil {
		return err
	}
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
	r.desired.listeners(r.hold.resources, r.pending.removals)
	return nil
}

// startupHold is what is not served yet after the agent's start. An Envoy and a table that an earlier agent left are newer than the
// last good state on disk, which is written a moment after the node forwards by it: they are only replaced by what a control
// plane has to add to that state, or when none answers. And Envoys are not served a world without Services, of which they
// would forget theirs.
type startupHold struct {
	resources map[string]cache.Contribution
	running   []envoyns.ID // Envoys that were running.
	until     time.Time
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
	r.pending.seq = r.cache.Publish(cache.Update{Contributions: r.hold.resources})
	r.pending.deadline = time.Now().Add(envoyTimeout)
	r.hold = nil
}

// holdTimer returns a channel that fires when it is worth looking whether the hold is over.
func (r *reconciler) holdTimer() <-chan time.Time {
	if r.hold == nil || !r.desired.receivedTypes[envoy.FrontendType] {
		return nil
	}
	return time.After(settleTime / 4)
}
