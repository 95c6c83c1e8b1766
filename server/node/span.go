package node

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
)

// commitSpan is the node's part of the traces of a change: from its arrival until the node forwards by it.
type commitSpan struct{ spans map[string]trace.Span } // By traceparent.

// follow starts a span in the trace of a resource's traceparent, unless that is empty or has a span already.
func (s *commitSpan) follow(tracer trace.Tracer, traceparent, node string) {
	if _, known := s.spans[traceparent]; known || traceparent == "" {
		return
	}
	if s.spans == nil {
		s.spans = map[string]trace.Span{}
	}
	ctx := propagation.TraceContext{}.Extract(context.Background(), propagation.MapCarrier{"traceparent": traceparent})
	_, s.spans[traceparent] = tracer.Start(ctx, "node.program", trace.WithAttributes(attribute.String("k8s.node.name", node)))
}

// end ends the spans, with the error of the commit.
func (s *commitSpan) end(err error) {
	for _, span := range s.spans {
		if err != nil {
			span.SetStatus(codes.Error, err.Error())
		}
		span.End()
	}
}
