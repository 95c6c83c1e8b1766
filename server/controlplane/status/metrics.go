package status

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/fairlead/fairlead/cache"
	"github.com/fairlead/fairlead/server/ops/telemetry"
	"github.com/fairlead/fairlead/translate/envoy"
	"github.com/fairlead/fairlead/translate/model"
)

// metrics are what the process measures as it happens. Labels are of closed sets, and each series is there from the start: a
// rate misses the first event of a series that begins with it. What is known of single Services is in the status.
type metrics struct {
	programming, propagation, translation, publication metric.Float64Histogram
	responses                                          metric.Int64Counter
}

func newMetrics(meter metric.Meter) (*metrics, error) {
	var errs []error
	histogram := func(name, description string) metric.Float64Histogram {
		h, err := meter.Float64Histogram(name, metric.WithUnit("s"), metric.WithDescription(description),
			metric.WithExplicitBucketBoundaries(telemetry.LatencyBuckets...))
		errs = append(errs, err)
		return h
	}
	responses, err := meter.Int64Counter("fairlead.xds.responses",
		metric.WithDescription("Responses that clients acknowledged (ack) or rejected (nack), by type of resource."))
	errs = append(errs, err)
	for _, typeURL := range append(slices.Collect(maps.Keys(TypeNames)), "") {
		for _, result := range []string{acked, nacked} {
			responses.Add(context.Background(), 0, metric.WithAttributes(typeLabel(typeURL), attribute.String("result", result)))
		}
	}
	return &metrics{
		programming: histogram("fairlead.programming.duration",
			"From when the oldest object of a publish was written, which the API server records to the second, until a node forwarded accordingly."),
		propagation: histogram("fairlead.propagation.duration",
			"From when the oldest change of a publish was seen until a node forwarded accordingly."),
		translation: histogram("fairlead.translation.duration", "How long the translation of one publish took."),
		publication: histogram("fairlead.publication.duration", "How long it took to hand one publish to all streams."),
		responses:   responses,
	}, errors.Join(errs...)
}

// published records how long a publish took.
func (m *metrics) published(p *Publication) {
	m.translation.Record(context.Background(), p.translated.Sub(p.started).Seconds())
	m.publication.Record(context.Background(), p.published.Sub(p.translated).Seconds())
}

// programmed records the latency of a node that has forwarded as published since a moment.
func (m *metrics) programmed(p *Publication, since time.Time) {
	if p.changed.IsZero() {
		return
	}
	m.programming.Record(context.Background(), since.Sub(p.changed).Seconds())
	m.propagation.Record(context.Background(), since.Sub(p.seen).Seconds())
}

// responded counts a client's ACK or NACK of a response.
func (m *metrics) responded(typeURL, result string) {
	m.responses.Add(context.Background(), 1, metric.WithAttributes(typeLabel(typeURL), attribute.String("result", result)))
}

// TypeNames are the types that clients may subscribe to as labels call them. A client may name any other.
var TypeNames = map[string]string{
	envoy.NodeType:       "Node",
	envoy.ClusterType:    "Cluster",
	envoy.AssignmentType: "ClusterLoadAssignment",
	envoy.ListenerType:   "Listener",
	envoy.FrontendType:   "Frontend",
}

func typeLabel(typeURL string) attribute.KeyValue {
	name, ok := TypeNames[typeURL]
	if !ok {
		name = "other"
	}
	return attribute.String("type", name)
}

// The results of a response.
const (
	acked  = "ack"
	nacked = "nack"
)

// observe registers a callback by which the meter reads the numbers that the tracker and the cache hold.
func (t *Tracker) observe(meter metric.Meter) error {
	var errs []error
	var all []metric.Observable
	gauge := func(name, description string) metric.Float64ObservableGauge {
		g, err := meter.Float64ObservableGauge(name, metric.WithDescription(description))
		errs, all = append(errs, err), append(all, g)
		return g
	}
	var (
		services  = gauge("fairlead.services", "Services that are forwarded.")
		frontends = gauge("fairlead.frontends", "Addresses and ports of Services; those of NodePorts count once.")
		endpoints = gauge("fairlead.endpoints", "Endpoints in all EndpointSlices.")
		nodes     = gauge("fairlead.nodes", "Node objects: each node is expected to forward.")
		node      = gauge("fairlead.node.forwarding", "1 if the node of an object has its agent connected to this replica and forwards; of the replicas, the highest counts.")
		agents    = gauge("fairlead.agents", "Nodes whose agent is connected to this replica, by state; /debug/status says why one does not forward.")
		programs  = gauge("fairlead.grpc.programs", "gRPC programs that are connected to this replica.")
		problems  = gauge("fairlead.problems", "What is wrong with objects, by reason; /debug/status names them.")
		streams   = gauge("fairlead.xds.subscriptions", "Types that streams subscribe to, by type of resource.")
	)
	_, err := meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		world := t.worldNow()
		o.ObserveFloat64(services, float64(world.Services))
		o.ObserveFloat64(frontends, float64(world.Frontends))
		o.ObserveFloat64(endpoints, float64(world.Endpoints))
		o.ObserveFloat64(nodes, float64(world.Nodes))
		rows, others := t.nodeRows(t.last())
		byReason := countBy(slices.Concat(t.Problems(), problemsOf(rows)), func(p model.Problem) model.Reason { return p.Reason })
		for _, reason := range model.Reasons {
			o.ObserveFloat64(problems, byReason[reason], metric.WithAttributes(attribute.String("reason", string(reason))))
		}
		o.ObserveFloat64(programs, float64(others))
		byState := countBy(rows, func(n Node) State { return n.State })
		for _, state := range States {
			o.ObserveFloat64(agents, byState[state], metric.WithAttributes(attribute.String("state", string(state))))
		}
		for _, n := range rows {
			forwards := 0.0
			if n.State == Forwarding {
				forwards = 1
			}
			o.ObserveFloat64(node, forwards, metric.WithAttributes(attribute.String("node", n.Node)))
		}
		for label, n := range countBy(t.cache.Status(), func(s cache.StreamStatus) attribute.KeyValue { return typeLabel(s.TypeURL) }) {
			o.ObserveFloat64(streams, n, metric.WithAttributes(label))
		}
		return nil
	}, all...)
	return errors.Join(append(errs, err)...)
}

// countBy counts what has the same label.
func countBy[T any, L comparable](all []T, label func(T) L) map[L]float64 {
	counts := map[L]float64{}
	for _, each := range all {
		counts[label(each)]++
	}
	return counts
}
