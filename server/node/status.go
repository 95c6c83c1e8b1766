package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/fairlead/fairlead/cache"
	"github.com/fairlead/fairlead/server/node/dataplane"
	"github.com/fairlead/fairlead/server/node/envoyns"
	"github.com/fairlead/fairlead/server/node/upstream"
	"github.com/fairlead/fairlead/server/ops/admin"
	"github.com/fairlead/fairlead/server/ops/telemetry"
	"github.com/fairlead/fairlead/translate/frontendpb"
	"github.com/fairlead/fairlead/translate/model"
)

// Status is the state of an agent and its node. It is immutable.
type Status struct {
	Node        string               `json:"node"`
	Frontends   int                  `json:"frontends"`
	Programmed  bool                 `json:"programmed"` // The kernel has what the control plane sent.
	Error       string               `json:"error,omitempty"`
	Generations []envoyns.ID         `json:"generations"`        // Living Envoys.
	Hung        []envoyns.ID         `json:"hung,omitempty"`     // Living Envoys that answer no connection.
	Current     envoyns.ID           `json:"current"`            // The one to which the kernel sends new connections; 0: none.
	Upstream    upstream.Status      `json:"upstream"`           // The stream from the control plane.
	Envoys      []cache.StreamStatus `json:"envoys"`             // The streams to the Envoys.
	Since       time.Time            `json:"since"`              // When the node entered this state.
	Problems    []model.Problem      `json:"problems,omitempty"` // Those that the node itself has found.

	LastUpdated time.Time `json:"lastUpdated,omitzero"` // When the agent last committed a change to the kernel; zero: never.
	Pending     time.Time `json:"pending,omitzero"`     // Since when a change waits for Envoy or the kernel; zero: none waits.

	report   frontendpb.Report // What the control plane is told.
	eligible bool              // Load balancers may send new connections to the node.
	families []string          // Of the node's addresses, as kube-proxy writes them.
	healthy  bool              // The health checks of load balancers may succeed.
}

// updateStatus stores the reconciler's state for other goroutines.
func (r *reconciler) updateStatus(err error) {
	s := &Status{
		Node: r.config.Node, Frontends: len(r.desired.frontends), Programmed: r.desired.isSynced() && err == nil && !r.table.Dirty(),
		Generations: r.instances.dataplane().Live, Current: r.instances.current, Since: time.Now(),
	}
	for _, id := range s.Generations {
		if r.instances.hangs(id) {
			s.Hung = append(s.Hung, id)
		}
	}
	switch {
	case err == nil:
		r.failingSince = time.Time{}
	case r.failingSince.IsZero():
		r.failingSince = time.Now()
	}
	if err != nil {
		s.Error = err.Error()
	}
	s.LastUpdated, s.eligible, s.families = r.committedAt, r.desired.self != nil && !r.desired.self.GetIneligible(), r.desired.families()
	s.Problems = append(s.Problems, r.inTheWay...)
	if p := r.desired.podProblem(); p != nil {
		s.Problems = append(s.Problems, *p)
		if !slices.Contains(r.status.Load().Problems, *p) {
			r.log.Warn("traffic of pods may count as traffic from outside on this node", "problem", p.Message)
		}
	}
	if p := r.desired.splice.problem(r.config.Node); p != nil {
		s.Problems = append(s.Problems, *p)
	}
	if r.pending != nil {
		s.Pending = r.pending.began
	}
	// A node stays healthy while it applies a slow change, as with kube-proxy.
	s.healthy = r.desired.isSynced() && s.Current != 0 && (err == nil || time.Since(r.failingSince) < commitTimeout)
	old := r.status.Load()
	if old.same(s) {
		s.Since = old.Since
	}
	s.report = s.reportAfter(old.report)
	r.status.Store(s)
	if !s.report.Equal(old.report) {
		r.upstream.Report(s.report)
	}
}

// reportAfter returns what the control plane is told of the status, after another report.
func (s *Status) reportAfter(old frontendpb.Report) frontendpb.Report {
	r := frontendpb.Report{Since: old.Since}
	if err := s.ready(); err != nil {
		r.NotReady = err.Error()
	}
	for _, p := range s.Problems {
		if p.Reason == model.HostObstacle { // A node without pods yet has no problem with telling them from others.
			r.Problems = append(r.Problems, model.Problem{Reason: p.Reason, Message: p.Message})
		}
	}
	if (r.NotReady == "") != (old.NotReady == "") {
		r.Since = time.Now()
	}
	return r
}

// same reports whether two statuses are the same state of the kernel's table, the Envoys and the error.
func (s *Status) same(o *Status) bool {
	return s.Frontends == o.Frontends && s.Programmed == o.Programmed && s.Error == o.Error && s.Current == o.Current &&
		slices.Equal(s.Generations, o.Generations) && slices.Equal(s.Hung, o.Hung)
}

// Status returns the agent's present state. It may be called from any goroutine.
func (a *Agent) Status() Status {
	s := *a.reconciler.status.Load()
	s.Upstream, s.Envoys = a.upstream.Status(), a.reconciler.cache.Status()
	s.Problems = slices.Concat(s.Problems, a.reconciler.checks.Problems())
	return s
}

// ready returns why the node does not forward yet, or nil.
func (a *Agent) ready() error { return a.reconciler.status.Load().ready() }

// ready is Agent.ready for one status.
func (s *Status) ready() error {
	switch {
	case s.Error != "":
		return errors.New(s.Error)
	case !s.Programmed:
		return errors.New("no control plane has sent resources, and there is no last good state on disk")
	case s.Current == 0:
		return errors.New("no Envoy is ready: is fairlead proxy running on this node?")
	default:
		return nil
	}
}

// serveAdmin serves health, metrics and status until ctx ends.
func (a *Agent) serveAdmin(ctx context.Context) error {
	l, err := net.Listen("tcp", a.config.Admin)
	if err != nil {
		return fmt.Errorf("admin: %w", err)
	}
	metrics := a.config.Metrics
	if metrics == nil {
		metrics = http.NotFoundHandler()
	}
	return admin.Serve(ctx, l, admin.Config{
		Metrics: metrics, Live: func() error { return nil }, Ready: a.ready, Status: func() any { return a.Status() }, Log: a.log,
	})
}

// instruments are the agent's OpenTelemetry instruments. Their labels never name a Service.
type instruments struct {
	program metric.Float64Histogram
	nacks   metric.Int64Counter
	repairs metric.Int64Counter
}

// newInstruments makes the instruments, including the observable ones.
func (a *Agent) newInstruments(meter metric.Meter) (*instruments, error) {
	var errs []error
	keep := func(err error) { errs = append(errs, err) }
	i := &instruments{}
	var err error
	i.program, err = meter.Float64Histogram("fairlead.node.program.duration", metric.WithUnit("s"),
		metric.WithDescription("From the arrival of a change on the node until the node forwards by it."),
		metric.WithExplicitBucketBoundaries(telemetry.LatencyBuckets...))
	keep(err)
	i.nacks, err = meter.Int64Counter("fairlead.envoy.nacks", metric.WithDescription("Responses that an Envoy rejected."))
	keep(err)
	i.nacks.Add(context.Background(), 0) // A rate misses the first event of a series that begins with it.
	i.repairs, err = meter.Int64Counter("fairlead.node.repairs",
		metric.WithDescription("How often the agent put back what another program had removed, by what it was: table (of nftables) or links (with addresses, routes and rules)."))
	keep(err)
	keep(observePackets(meter))
	gauge := func(name, description string, read func(Status) int64) {
		_, err := meter.Int64ObservableGauge(name, metric.WithDescription(description), metric.WithInt64Callback(func(_ context.Context, o metric.Int64Observer) error {
			o.Observe(read(a.Status()))
			return nil
		}))
		keep(err)
	}
	gauge("fairlead.node.frontends", "Addresses and ports that the node forwards, refuses or drops.", func(s Status) int64 { return int64(s.Frontends) })
	gauge("fairlead.node.envoys", "Envoys that are alive on the node.", func(s Status) int64 { return int64(len(s.Generations)) })
	gauge("fairlead.node.envoys.hung", "Envoys on the node that answer no connection.", func(s Status) int64 { return int64(len(s.Hung)) })
	gauge("fairlead.node.ready", "1 if the node forwards, as far as it can tell itself.", func(s Status) int64 { return number(s.ready() == nil) })
	gauge("fairlead.node.problems", "What the node itself has found to be wrong; /debug/status names it.", func(s Status) int64 { return int64(len(s.Problems)) })
	gauge("fairlead.node.programmed", "1 if the kernel has all that the control plane sent.", func(s Status) int64 { return number(s.Programmed) })
	gauge("fairlead.upstream.connected", "1 if a control plane is connected.", func(s Status) int64 { return number(s.Upstream.Connected) })
	return i, errors.Join(errs...)
}

// observePackets makes the counter of packets that the kernel did not forward.
func observePackets(meter metric.Meter) error {
	counters, err := dataplane.NewCounters()
	if err != nil {
		return err
	}
	_, err = meter.Int64ObservableCounter("fairlead.node.unforwarded.packets",
		metric.WithDescription("Packets to Services that were not forwarded, by why: refused (no endpoint), dropped (none on this node, as the Service's policy asks), no-envoy, out-of-range (of the Service's source ranges)."),
		metric.WithInt64Callback(func(ctx context.Context, o metric.Int64Observer) error {
			packets, err := counters.Read(ctx)
			for reason, n := range packets {
				o.Observe(int64(n), metric.WithAttributes(attribute.String("reason", reason)))
			}
			return err
		}))
	return err
}

func number(b bool) int64 {
	if b {
		return 1
	}
	return 0
}
