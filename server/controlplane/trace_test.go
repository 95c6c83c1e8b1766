package controlplane

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/fairlead/fairlead/translate/envoy"
)

// describe renders the traces that changes led to, each span under its parent, in order of time.
func describe(spans tracetest.SpanStubs) string {
	slices.SortStableFunc(spans, func(a, b tracetest.SpanStub) int { return a.StartTime.Compare(b.StartTime) })
	var s strings.Builder
	var show func(parent trace.SpanContext, indent string)
	show = func(parent trace.SpanContext, indent string) {
		for _, span := range spans {
			if span.Parent.SpanID() != parent.SpanID() || parent.IsValid() && span.SpanContext.TraceID() != parent.TraceID() || span.Name == "kubernetes.sync" {
				continue
			}
			s.WriteString(indent + span.Name)
			for _, a := range span.Attributes {
				if a.Key == "k8s.object" || a.Key == "k8s.node.name" || a.Key == "k8s.object.resource_version" && a.Value.AsString() != "" {
					s.WriteString(" " + a.Value.AsString())
				}
			}
			s.WriteString("\n")
			show(span.SpanContext, indent+"  ")
		}
	}
	show(trace.SpanContext{}, "")
	return s.String()
}

// acked returns a condition: so many acknowledgements were traced.
func (c *controlPlane) acked(n int) func() bool {
	return func() bool {
		count := 0
		for _, s := range c.spans.GetSpans() {
			if s.Name == "ack" {
				count++
			}
		}
		return count == n
	}
}

func TestOneChangeIsOneTrace(t *testing.T) {
	c, folder := startDirectory(t, twoServices())
	n1, n2 := c.connect("n1"), c.connect("n2")
	n1.until("everything is there", n1.has(2, 2, 2, 1))
	n2.until("everything is there", n2.has(2, 2, 2, 1))
	c.eventually("both have everything", func() bool {
		s := c.status()
		return len(s.Nodes) == 2 && s.Nodes[0].Applied == s.Publish && s.Nodes[1].Applied == s.Publish
	})
	c.spans.Reset()

	before := time.Now()
	changed := strings.Replace(sliceManifest("web", "10.244.1.1"), "web-1,", `web-1, resourceVersion: "77",`, 1)
	put(t, folder, "web-slice.yaml", changed)
	held := n2.take("the change comes")
	n1.until("the change comes", func() bool { return len(n1.endpoints("default/web:http/TCP")) == 1 })
	c.eventually("n1 has it", c.acked(1))
	want := `kubernetes.change EndpointSlice default/web-1 77
  translate
  publish
    ack n1
`
	if diff := cmp.Diff(want, describe(c.spans.GetSpans())); diff != "" {
		t.Errorf("traces before n2 has it (-want +got):\n%s", diff)
	}
	n2.ack(held)
	c.eventually("n2 has it", c.acked(2))
	spans := c.spans.GetSpans()
	if diff := cmp.Diff(want+"    ack n2\n", describe(spans)); diff != "" {
		t.Errorf("traces (-want +got):\n%s", diff)
	}

	for _, s := range spans {
		if s.StartTime.Before(before) || s.EndTime.Before(s.StartTime) || s.EndTime.After(time.Now()) {
			t.Errorf("%s lasted from %s to %s, not after %s", s.Name, s.StartTime, s.EndTime, before)
		}
		if s.Name != "publish" {
			continue
		}
		// The agent continues the trace from here.
		got := n1.have[envoy.AssignmentType]["default/web:http/TCP"].GetMetadata().GetFilterMetadata()["fairlead"].GetFields()["traceparent"].GetStringValue()
		if want := fmt.Sprintf("00-%s-%s-01", s.SpanContext.TraceID(), s.SpanContext.SpanID()); got != want {
			t.Errorf("traceparent %q with the resource, want %q", got, want)
		}
	}
}
