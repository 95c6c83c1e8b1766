package agent

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
)

// commitSpan is the node's part of a change's trace: from the arrival of the change to the kernel's commit.
type commitSpan struct {
	parents map[string]bool
	spans   []trace.Span
}

// follow makes the span a child of the change that a resource came with.
func (s *commitSpan) follow(traceparent string) {
	if traceparent == "" {
		return
	}
	if s.parents == nil {
		s.parents = map[string]bool{}
	}
	s.parents[traceparent] = true
}

// start begins a span in each change's trace.
func (s *commitSpan) start(tracer trace.Tracer, node string) {
	for parent := range s.parents {
		ctx := propagation.TraceContext{}.Extract(context.Background(), propagation.MapCarrier{"traceparent": parent})
		_, span := tracer.Start(ctx, "node.program", trace.WithAttributes(attribute.String("k8s.node.name", node)))
		s.spans = append(s.spans, span)
	}
}

// end ends the spans, with what went wrong.
func (s *commitSpan) end(err error) {
	for _, span := range s.spans {
		if err != nil {
			span.SetStatus(codes.Error, err.Error())
		}
		span.End()
	}
}
