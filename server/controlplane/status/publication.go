package status

import (
	"context"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/fairlead/fairlead/server/source"
	"github.com/fairlead/fairlead/translate/model"
)

// maxTraced is how many changes of one publish get a trace. In a storm the first ones stand for all.
const maxTraced = 32

// Publication is one publish and the progress of the changes that it carries. Each change has a trace of its own:
//
//	kubernetes.change      from when the object changed until it was published
//	├─ translate
//	└─ publish
//	   ├─ ack              one for each node, until its agent forwards accordingly
//	   └─ …                what the agent adds under the context that goes with the resources
//
// That context is the first change's; the others' publish spans are linked to it.
type Publication struct {
	seq                 uint64
	changed, seen       time.Time // Of its oldest change; zero for the first publish, which no change led to.
	started, translated time.Time
	published           time.Time
	spans               []changeSpans
}

// changeSpans are the spans of one change.
type changeSpans struct{ root, publish trace.Span }

// NewPublication opens the spans of a publish whose translation began at started and is done now.
func (t *Tracker) NewPublication(changes []source.Event, started time.Time) *Publication {
	p := &Publication{started: started, translated: time.Now()}
	if len(changes) == 0 {
		p.open(t.tracer, "kubernetes.sync", started)
		return p
	}
	for i, c := range changes {
		origin := originOf(c)
		p.changed, p.seen = oldest(p.changed, origin.At), oldest(p.seen, c.Seen)
		if i < maxTraced {
			p.open(t.tracer, "kubernetes.change", origin.At,
				attribute.String("k8s.object", origin.Object),
				attribute.String("k8s.object.resource_version", origin.ResourceVersion),
				attribute.Bool("k8s.object.deleted", c.Service == nil && c.Slice == nil && c.Node == nil))
		}
	}
	return p
}

func (p *Publication) open(tracer trace.Tracer, name string, at time.Time, attributes ...attribute.KeyValue) {
	ctx, root := tracer.Start(context.Background(), name, trace.WithNewRoot(), trace.WithTimestamp(at), trace.WithAttributes(attributes...))
	if !root.IsRecording() {
		return
	}
	_, translate := tracer.Start(ctx, "translate", trace.WithTimestamp(p.started))
	translate.End(trace.WithTimestamp(p.translated))
	options := []trace.SpanStartOption{trace.WithTimestamp(p.translated)}
	if len(p.spans) > 0 {
		options = append(options, trace.WithLinks(trace.Link{SpanContext: p.spans[0].publish.SpanContext()}))
	}
	_, publish := tracer.Start(ctx, "publish", options...)
	p.spans = append(p.spans, changeSpans{root, publish})
}

// Traceparent returns the W3C trace context that goes with the resources, empty if nothing is traced.
func (p *Publication) Traceparent() string {
	if len(p.spans) == 0 {
		return ""
	}
	carrier := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(trace.ContextWithSpan(context.Background(), p.spans[0].publish), carrier)
	return carrier["traceparent"]
}

// Seq returns the sequence number of the publish.
func (p *Publication) Seq() uint64 { return p.seq }

// close ends the spans of a publish.
func (p *Publication) close(seq uint64) {
	p.seq, p.published = seq, time.Now()
	for _, s := range p.spans {
		s.publish.SetAttributes(attribute.Int64("fairlead.publish", int64(seq)))
		s.publish.End(trace.WithTimestamp(p.published))
		s.root.End(trace.WithTimestamp(p.published))
	}
}

// acked adds the span of a node that forwards accordingly. It lasts from when publishing began: the node may
// have its part of it, and acknowledge, before all have.
func (p *Publication) acked(tracer trace.Tracer, node string, at time.Time) {
	for _, s := range p.spans {
		ctx := trace.ContextWithSpan(context.Background(), s.publish)
		_, ack := tracer.Start(ctx, "ack", trace.WithTimestamp(p.translated), trace.WithAttributes(attribute.String("k8s.node.name", node)))
		ack.End(trace.WithTimestamp(at))
	}
}

// originOf returns which version of an object a change is, and when that was written: never after it was seen, whatever
// the API server's clock.
func originOf(c source.Event) model.ObjectVersion {
	origin := model.ObjectVersion{Object: c.Key.String(), At: c.Seen}
	switch {
	case c.Service != nil:
		origin = c.Service.Version
	case c.Slice != nil:
		origin = c.Slice.Version
	case c.Node != nil:
		origin = c.Node.Version
	}
	origin.At = oldest(c.Seen, origin.At)
	return origin
}

// oldest returns the earlier time. The zero time is none.
func oldest(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
