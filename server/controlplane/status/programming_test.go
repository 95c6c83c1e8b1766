package status

import (
	"fmt"
	"log/slog"
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
	"github.com/fairlead/fairlead/translate/model"
)

// object returns a Service.
func object(name string) model.Object {
	key := model.ServiceKey{Namespace: "default", Name: name}
	return model.Object{
		Key:     model.ObjectKey{Kind: model.KindService, Namespace: key.Namespace, Name: key.Name},
		Service: &model.Service{Key: key},
	}
}

func TestEachChangeOfAPublishHasATrace(t *testing.T) {
	spans := tracetest.NewInMemoryExporter()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSyncer(spans))
	changes := []source.Event{{Object: object("a")}, {Object: object("b")}}
	for i := range changes {
		changes[i].Seen = time.Now()
		changes[i].Service.Version = model.ObjectVersion{Object: changes[i].Key.String(), At: changes[i].Seen.Add(-time.Duration(i) * time.Second)}
	}
	r := (&Tracker{tracer: provider.Tracer("test")}).NewPublication(changes, time.Now())
	r.close(7)
	r.acked(provider.Tracer("test"), "n1", time.Now())
	got := spans.GetSpans()
	traces := map[trace.TraceID]map[string]int{}
	for _, s := range got {
		id := s.SpanContext.TraceID()
		if traces[id] == nil {
			traces[id] = map[string]int{}
		}
		traces[id][s.Name]++
	}
	if len(traces) != 2 {
		t.Errorf("%d traces, want one for each change", len(traces))
	}
	for _, names := range traces {
		if diff := cmp.Diff(map[string]int{"kubernetes.change": 1, "translate": 1, "publish": 1, "ack": 1}, names); diff != "" {
			t.Errorf("spans of a trace (-want +got):\n%s", diff)
		}
	}
	if !r.changed.Equal(changes[1].Service.Version.At) || !r.seen.Equal(changes[0].Seen) {
		t.Errorf("changed %s, seen %s; want those of the oldest: %s, %s", r.changed, r.seen, changes[1].Service.Version.At, changes[0].Seen)
	}
	// Agents hear of one trace; the other leads there.
	links := 0
	for _, s := range got {
		for _, l := range s.Links {
			links++
			if !strings.Contains(r.Traceparent(), l.SpanContext.SpanID().String()) {
				t.Errorf("%s is linked to %s, not to %s", s.Name, l.SpanContext.SpanID(), r.Traceparent())
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
		changes[i] = source.Event{Object: object(fmt.Sprint("s", i)), Seen: time.Now()}
	}
	(&Tracker{tracer: provider.Tracer("test")}).NewPublication(changes, time.Now()).close(7)
	if got, want := len(spans.GetSpans()), 3*maxTraced; got != want {
		t.Errorf("%d spans, want %d", got, want)
	}
}

func TestADeletionIsDatedWhenItWasSeen(t *testing.T) {
	seen := time.Now()
	c := source.Event{Object: model.Object{Key: object("web").Key}, Seen: seen}
	if got, want := originOf(c), (model.ObjectVersion{Object: "Service default/web", At: seen}); got != want {
		t.Errorf("origin %+v, want %+v", got, want)
	}
	// The clock of whoever wrote an object may be ahead.
	c.Object = object("web")
	c.Service.Version = model.ObjectVersion{Object: "Service default/web", ResourceVersion: "9", At: seen.Add(time.Hour)}
	if got, want := originOf(c), (model.ObjectVersion{Object: "Service default/web", ResourceVersion: "9", At: seen}); got != want {
		t.Errorf("origin %+v, want %+v", got, want)
	}
}

// newTestTracker returns a tracker that logs to log, and its cache.
func newTestTracker(t *testing.T, log *slog.Logger) (*Tracker, *cache.Cache) {
	t.Helper()
	tracker, c, err := New(Config{
		Tracer: tracenoop.NewTracerProvider().Tracer("test"), Meter: metricnoop.NewMeterProvider().Meter("test"), Log: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	return tracker, c
}

// published returns a tracker that knows of publishes 1 to n, one a second from start.
func published(t *testing.T, n uint64, start time.Time) *Tracker {
	t.Helper()
	r, _ := newTestTracker(t, slog.New(slog.DiscardHandler))
	for seq := uint64(1); seq <= n; seq++ {
		r.kept = append(r.kept, &Publication{seq: seq, published: start.Add(time.Duration(seq) * time.Second)})
	}
	return r
}

func TestAcknowledgementsCompletePublications(t *testing.T) {
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
			r := published(t, 10, start)
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

func TestPublicationsAreBounded(t *testing.T) {
	r := published(t, 0, time.Now())
	for range keptPublications + 100 {
		r.Publish(cache.Update{}, &Publication{})
	}
	if len(r.kept) != keptPublications {
		t.Errorf("%d publishes are remembered, want %d", len(r.kept), keptPublications)
	}
	r.kept[0].published = time.Now().Add(-keptFor - time.Second)
	r.Publish(cache.Update{}, &Publication{})
	if len(r.kept) != keptPublications {
		t.Errorf("%d publishes are remembered, want %d", len(r.kept), keptPublications)
	}

	// Nodes that are not connected, as none is here, are forgotten in time.
	for i := range 3 * keptPublications {
		r.acknowledge(ack{node: fmt.Sprint("n", i), since: 2, seq: 2, done: 2})
	}
	r.Publish(cache.Update{}, &Publication{})
	if len(r.nodes) != 0 {
		t.Errorf("%d nodes are remembered, none of which is connected", len(r.nodes))
	}
}
