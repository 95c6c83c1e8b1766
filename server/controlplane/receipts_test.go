package controlplane

import (
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	tracenoop "go.opentelemetry.io/otel/trace/noop"

	"github.com/fairlead/fairlead/cache"
	"github.com/fairlead/fairlead/server/source"
	"github.com/fairlead/fairlead/translate/envoy"
	"github.com/fairlead/fairlead/translate/model"
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

func TestEachChangeOfAPublishHasATrace(t *testing.T) {
	spans := tracetest.NewInMemoryExporter()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSyncer(spans))
	changes := []source.Event{{Object: object("a", "10.96.0.1")}, {Object: object("b", "10.96.0.2")}}
	for i := range changes {
		changes[i].Seen = time.Now()
		changes[i].Service.Version = model.ObjectVersion{Object: changes[i].Key.String(), At: changes[i].Seen.Add(-time.Duration(i) * time.Second)}
	}
	r := newReceipt(provider.Tracer("test"), changes, time.Now())
	r.close(7)
	r.acked(provider.Tracer("test"), "n1", time.Now())
	want := `kubernetes.change Service default/b
  translate
  publish
    ack n1
kubernetes.change Service default/a
  translate
  publish
    ack n1
`
	got := spans.GetSpans()
	if diff := cmp.Diff(want, describe(got)); diff != "" {
		t.Errorf("traces (-want +got):\n%s", diff)
	}
	if !r.changed.Equal(changes[1].Service.Version.At) || !r.seen.Equal(changes[0].Seen) {
		t.Errorf("changed %s, seen %s; want those of the oldest: %s, %s", r.changed, r.seen, changes[1].Service.Version.At, changes[0].Seen)
	}
	// Agents hear of one trace; the other leads there.
	links := 0
	for _, s := range got {
		for _, l := range s.Links {
			links++
			if !strings.Contains(r.traceparent(), l.SpanContext.SpanID().String()) {
				t.Errorf("%s is linked to %s, not to %s", s.Name, l.SpanContext.SpanID(), r.traceparent())
			}
		}
	}
	if links != 1 {
		t.Errorf("%d links, want 1", links)
	}
}

func TestAStormIsTracedInPart(t *testing.T) {
	spans := tracetest.NewInMemoryExporter()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSyncer(spans))
	changes := make([]source.Event, 10*maxTraced)
	for i := range changes {
		changes[i] = source.Event{Object: object(fmt.Sprint("s", i), "10.96.0.1"), Seen: time.Now()}
	}
	newReceipt(provider.Tracer("test"), changes, time.Now()).close(7)
	if got, want := len(spans.GetSpans()), 3*maxTraced; got != want {
		t.Errorf("%d spans, want %d", got, want)
	}
}

func TestADeletionIsDatedWhenItWasSeen(t *testing.T) {
	seen := time.Now()
	c := source.Event{Object: model.Object{Key: object("web", "10.96.0.1").Key}, Seen: seen}
	if got, want := originOf(c), (model.ObjectVersion{Object: "Service default/web", At: seen}); got != want {
		t.Errorf("origin %+v, want %+v", got, want)
	}
	// The clock of whoever wrote an object may be ahead.
	c.Object = object("web", "10.96.0.1")
	c.Service.Version = model.ObjectVersion{Object: "Service default/web", ResourceVersion: "9", At: seen.Add(time.Hour)}
	if got, want := originOf(c), (model.ObjectVersion{Object: "Service default/web", ResourceVersion: "9", At: seen}); got != want {
		t.Errorf("origin %+v, want %+v", got, want)
	}
}

// newTestReceipts returns receipts of which publishes 1 to n are known, one a second from start.
func newTestReceipts(t *testing.T, n uint64, start time.Time) *receipts {
	t.Helper()
	m, err := newMetrics(metricnoop.NewMeterProvider().Meter("test"))
	if err != nil {
		t.Fatal(err)
	}
	r := newReceipts(tracenoop.NewTracerProvider().Tracer("test"), m, slog.New(slog.DiscardHandler))
	r.cache = cache.New(cache.Config{Observer: r})
	for seq := uint64(1); seq <= n; seq++ {
		r.kept = append(r.kept, &receipt{seq: seq, published: start.Add(time.Duration(seq) * time.Second)})
	}
	return r
}

func TestAcknowledgementsCompleteReceipts(t *testing.T) {
	start := time.Now()
	for _, test := range []struct {
		name string
		acks []ack
		want [][]uint64 // The publishes that each acknowledgement completes.
	}{
		{"a change of one type", []ack{{since: 5, seq: 5, done: 5}}, [][]uint64{{5}}},
		{"what a client gets first is not news", []ack{{since: 1, seq: 9, done: 9}}, [][]uint64{nil}},
		{"a publish with several types is complete with the last one", []ack{{since: 5, seq: 5, done: 4}, {since: 5, seq: 5, done: 5}}, [][]uint64{nil, {5}}},
		{"publishes that came while the client was busy", []ack{{since: 5, seq: 5, done: 5}, {since: 6, seq: 8, done: 8}}, [][]uint64{{5}, {6, 7, 8}}},
		{"publishes of no concern in between", []ack{{since: 3, seq: 3, done: 5}, {since: 8, seq: 9, done: 9}}, [][]uint64{{3}, {8, 9}}},
		{"once only", []ack{{since: 5, seq: 5, done: 5}, {since: 5, seq: 5, done: 5}}, [][]uint64{{5}, nil}},
		{"a publish that is not remembered", []ack{{since: 12, seq: 13, done: 13}}, [][]uint64{nil}},
		{"a rejected publish never completes", []ack{{since: 5, seq: 4, done: 4}, {since: 6, seq: 4, done: 4}}, [][]uint64{nil, nil}},
		{"too late to be news", []ack{{since: 5, seq: 5, done: 4}, {since: 5, seq: 9, done: 4, at: start.Add(keptFor + time.Minute)}, {since: 9, seq: 9, done: 9}}, [][]uint64{nil, nil, {9}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := newTestReceipts(t, 10, start)
			var got [][]uint64
			for _, a := range test.acks {
				a.node = "n1"
				if a.at.IsZero() {
					a.at = start.Add(20 * time.Second)
				}
				var complete []uint64
				for _, k := range r.acknowledge(a) {
					complete = append(complete, k.seq)
				}
				got = append(got, complete)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("completed (-want +got):\n%s", diff)
			}
		})
	}
}

func TestReceiptsAreBounded(t *testing.T) {
	r := newTestReceipts(t, 0, time.Now())
	for range keptReceipts + 100 {
		r.publish(cache.Update{}, &receipt{})
	}
	if len(r.kept) != keptReceipts {
		t.Errorf("%d publishes are remembered, want %d", len(r.kept), keptReceipts)
	}
	r.kept[0].published = time.Now().Add(-keptFor - time.Second)
	r.publish(cache.Update{}, &receipt{})
	if len(r.kept) != keptReceipts {
		t.Errorf("%d publishes are remembered, want %d", len(r.kept), keptReceipts)
	}

	// Nodes that are not connected, as none is here, are forgotten in time.
	for i := range 3 * keptReceipts {
		r.acknowledge(ack{node: fmt.Sprint("n", i), since: 2, seq: 2, done: 2})
	}
	r.publish(cache.Update{}, &receipt{})
	if len(r.nodes) != 0 {
		t.Errorf("%d nodes are remembered, none of which is connected", len(r.nodes))
	}
}
