package demo

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/fairlead/fairlead/server/lab"
	"github.com/fairlead/fairlead/server/node"
)

const (
	leaving = "web-2"
	joining = "web-4"

	rate = 300 // Requests a second.

	// quiet is how many requests in a row must not reach a pod before it counts as having left. With three pods that
	// would happen by chance once in 10^14.
	quiet = 80

	changeTimeout = 30 * time.Second
)

// newConnections is a load of which each request has a connection of its own.
func newConnections(to netip.AddrPort) lab.LoadConfig {
	return lab.LoadConfig{Request: lab.Request{Network: lab.HTTP, To: to}, Rate: rate, Workers: 8, Timeout: requestTimeout}
}

// keptConnections is a load on a few connections that stay open.
func keptConnections(to netip.AddrPort) lab.LoadConfig {
	return lab.LoadConfig{Request: lab.Request{Network: lab.HTTP, To: to}, Rate: rate, Workers: 4, Timeout: requestTimeout, KeepAlive: true}
}

func noFailures(r lab.Report) error {
	if n := r.Failed(); n > 0 {
		return fmt.Errorf("%d of %d requests failed %v, the last with: %w", n, r.Requests, r.Failures, r.LastError)
	}
	return nil
}

// loads are requests on new and on kept connections at once.
type loads struct{ fresh, kept *lab.Load }

func (d *demo) startLoads() (*loads, error) {
	web, err := d.frontend("web", corev1.IPv4Protocol)
	if err != nil {
		return nil, err
	}
	fresh, err := d.client.StartLoad(newConnections(web))
	if err != nil {
		return nil, err
	}
	kept, err := d.client.StartLoad(keptConnections(web))
	if err != nil {
		fresh.Stop()
		return nil, err
	}
	return &loads{fresh: fresh, kept: kept}, nil
}

// stop ends both and fails if a request has.
func (l *loads) stop() (fresh, kept lab.Report, err error) {
	fresh, kept = l.fresh.Stop(), l.kept.Stop()
	return fresh, kept, errors.Join(noFailures(fresh), noFailures(kept))
}

// showRollingChange does what the controllers of a cluster do when a Deployment is rolled: a new pod becomes an endpoint,
// an old one is marked as terminating, gets no new connections, finishes its work and is deleted.
func (d *demo) showRollingChange(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, changeTimeout)
	defer cancel()
	l, err := d.startLoads()
	if err != nil {
		return err
	}
	err = d.roll(ctx, l)
	fresh, kept, failed := l.stop()
	if err := errors.Join(err, failed); err != nil {
		return err
	}
	d.out.result("%d requests on new connections, %d on %d kept ones: 0 failed", fresh.Requests, kept.Requests, kept.Connections)
	d.out.result("new connections: %s; p50 %s, p99 %s", answers(fresh), milliseconds(fresh.P50), milliseconds(fresh.P99))
	return nil
}

func (d *demo) roll(ctx context.Context, l *loads) error {
	if _, err := l.fresh.WaitMore(ctx, 100); err != nil {
		return err
	}
	took, err := d.join(ctx, l.fresh)
	if err != nil {
		return err
	}
	d.out.result("%s joins on %s: it has its first request %s after the manifest changed", joining, d.nodes[0].Name, milliseconds(took))

	start := time.Now()
	err = d.editWeb(func(s *discoveryv1.EndpointSlice) {
		if e := podOf(s, leaving); e != nil {
			e.Conditions = discoveryv1.EndpointConditions{Ready: new(false), Serving: new(true), Terminating: new(true)}
		}
	})
	if err != nil {
		return err
	}
	if _, err := l.fresh.Wait(ctx, lab.Silent(leaving, quiet)); err != nil {
		return fmt.Errorf("%s still gets new connections: %w", leaving, err)
	}
	if err := d.deletePod(ctx, leaving); err != nil {
		return err
	}
	err = d.editWeb(func(s *discoveryv1.EndpointSlice) {
		s.Endpoints = slices.DeleteFunc(s.Endpoints, func(e discoveryv1.Endpoint) bool { return e.TargetRef != nil && e.TargetRef.Name == leaving })
	})
	if err != nil {
		return err
	}
	d.out.result("%s leaves: it gets no new connection, finishes those it has, and is deleted %.1f s later", leaving, time.Since(start).Seconds())
	_, err = l.fresh.WaitMore(ctx, 100)
	return err
}

// join starts a pod, makes it an endpoint, and returns how long that took to show.
func (d *demo) join(ctx context.Context, load *lab.Load) (time.Duration, error) {
	node, port := d.nodes[0].Name, d.services["web"].Spec.Ports[0]
	p, err := d.startPod(joining, node, 0, discoveryv1.EndpointPort{Protocol: &port.Protocol, Port: new(port.TargetPort.IntVal)})
	if err != nil {
		return 0, err
	}
	start := time.Now()
	err = d.editWeb(func(s *discoveryv1.EndpointSlice) {
		address := p.IPv4
		if s.AddressType == discoveryv1.AddressTypeIPv6 {
			address = p.IPv6
		}
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{
			Addresses:  []string{address.String()},
			Conditions: discoveryv1.EndpointConditions{Ready: new(true), Serving: new(true), Terminating: new(false)},
			NodeName:   &node,
			TargetRef:  &corev1.ObjectReference{Kind: "Pod", Namespace: s.Namespace, Name: joining},
		})
	})
	if err != nil {
		return 0, err
	}
	if _, err := load.Wait(ctx, func(r lab.Report) bool { return r.Answers[joining] > 0 }); err != nil {
		return 0, fmt.Errorf("%s gets no connection: %w", joining, err)
	}
	return time.Since(start), nil
}

// showReplacement starts a second Envoy beside the client's, has it take over, and stops the first when nobody needs it
// any more.
func (d *demo) showReplacement(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, changeTimeout)
	defer cancel()
	l, err := d.startLoads()
	if err != nil {
		return err
	}
	kept, err := d.replace(ctx, l)
	fresh := l.fresh.Stop()
	l.kept.Stop()
	if err := errors.Join(err, noFailures(fresh), noFailures(kept)); err != nil {
		return err
	}
	if kept.Connections != keptConnections(netip.AddrPort{}).Workers {
		return fmt.Errorf("requests on kept connections took %d connections: some were cut", kept.Connections)
	}
	d.out.result("%d requests on new connections: 0 failed; p50 %s, p99 %s", fresh.Requests, milliseconds(fresh.P50), milliseconds(fresh.P99))
	return nil
}

// replace returns the report of the kept connections, which it ends before it stops the Envoy that they go through.
func (d *demo) replace(ctx context.Context, l *loads) (kept lab.Report, err error) {
	name := d.nodes[0].Name
	old := d.fleet.Proxies(name)[0]
	before, err := d.fleet.Status(ctx, name)
	if err != nil {
		return kept, err
	}
	if _, err := l.kept.WaitMore(ctx, 100); err != nil {
		return kept, err
	}
	start := time.Now()
	if _, err := d.fleet.StartProxy(name); err != nil {
		return kept, err
	}
	after, err := d.fleet.Await(ctx, name, func(s node.Status) bool { return s.Current != 0 && s.Current != before.Current })
	if err != nil {
		return kept, fmt.Errorf("the new Envoy does not take over: %w", err)
	}
	d.out.result("a second Envoy on %s takes over after %.1f s: generation %d follows %d", name, time.Since(start).Seconds(), after.Current, before.Current)
	for _, load := range []*lab.Load{l.fresh, l.kept} {
		if _, err := load.WaitMore(ctx, 300); err != nil {
			return kept, err
		}
	}
	kept = l.kept.Stop()
	d.out.result("%d requests on %d connections from before go on through the old one: 0 failed", kept.Requests, kept.Connections)
	d.fleet.StopProxy(name, old)
	_, err = l.fresh.WaitMore(ctx, 300)
	d.out.result("the old Envoy is stopped")
	return kept, err
}
