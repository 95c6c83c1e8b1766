package node

import (
	"context"

	"github.com/fairlead/fairlead/server/node/launcher"
)

// admit joins a proxy's namespace to the node and lets its Envoy start. It removes the links again if the Envoy cannot start, or
// if the proxy has hung up: a number without an Envoy must not become the current one.
func (r *reconciler) admit(ctx context.Context, request *launcher.Request) {
	id, err := r.instances.start(int(request.Namespace.Fd()), r.desired.addresses())
	if err != nil {
		r.reject(request, err)
		return
	}
	bootstrap, err := Bootstrap(r.config.Node, r.config.RunDir, id).JSON()
	if err == nil {
		// The table must have the Envoy instance's links before the first packet arrives from them.
		err = r.commit(ctx)
	}
	if err != nil {
		r.instances.abort(id)
		r.reject(request, err)
		return
	}
	if err := request.Accept(bootstrap); err != nil {
		r.instances.abort(id)
		r.log.Warn("a proxy hung up before the agent answered", "generation", id, "error", err)
	}
}

// reject answers a proxy with the reason why its Envoy cannot start.
func (r *reconciler) reject(request *launcher.Request, why error) {
	r.log.Error("cannot start an Envoy", "error", why)
	if err := request.Refuse(why); err != nil {
		r.log.Warn("a proxy hung up before the agent answered", "error", err)
	}
}

// ackObserver wakes the reconciler when an Envoy sends an ACK or NACK.
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
