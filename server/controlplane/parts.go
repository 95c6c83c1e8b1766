package controlplane

import "context"

// parts are goroutines that stop in the reverse order of their start.
type parts struct {
	ctx    context.Context
	failed chan error // Has room for one error of each.
	stops  []func()
}

// start runs a part until it is stopped. It stops when its context ends, and fails if it returns an error.
func (p *parts) start(run func(context.Context) error) {
	ctx, cancel := context.WithCancel(p.ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := run(ctx); err != nil {
			p.failed <- err
		}
	}()
	p.stops = append(p.stops, func() {
		cancel()
		<-done
	})
}

// stop stops all parts.
func (p *parts) stop() {
	for i := len(p.stops) - 1; i >= 0; i-- {
		p.stops[i]()
	}
}
