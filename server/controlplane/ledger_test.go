package controlplane

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	tracenoop "go.opentelemetry.io/otel/trace/noop"

	"github.com/fairlead/fairlead/cache"
	"github.com/fairlead/fairlead/server/source"
	"github.com/fairlead/fairlead/translate/model"
)

// logged returns a ledger and a function that returns what it has logged since the last call.
func logged() (*ledger, func() string) {
	var out bytes.Buffer
	handler := slog.NewTextHandler(&out, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}})
	return newLedger(slog.New(handler)), func() string {
		defer out.Reset()
		return out.String()
	}
}

func TestLedgerLogsOnlyChanges(t *testing.T) {
	l, log := logged()
	address := model.Problem{Object: "Service default/web", Reason: model.InvalidAddress, Message: "no address"}
	port := model.Problem{Object: "Service default/api", Reason: model.InvalidPort, Message: "no port"}

	for _, step := range []struct {
		name string
		now  []model.Problem
		want string
	}{
		{"one", []model.Problem{address}, "level=WARN msg=problem object=\"Service default/web\" reason=InvalidAddress message=\"no address\"\n"},
		{"the same", []model.Problem{address}, ""},
		{"one more", []model.Problem{port, address}, "level=WARN msg=problem object=\"Service default/api\" reason=InvalidPort message=\"no port\"\n"},
		{"one less", []model.Problem{port}, "level=INFO msg=\"problem solved\" object=\"Service default/web\" reason=InvalidAddress message=\"no address\"\n"},
		{"none", nil, "level=INFO msg=\"problem solved\" object=\"Service default/api\" reason=InvalidPort message=\"no port\"\n"},
	} {
		l.setWorld(step.now)
		if diff := cmp.Diff(step.want, log()); diff != "" {
			t.Errorf("%s: log (-want +got):\n%s", step.name, diff)
		}
		if diff := cmp.Diff(len(step.now), len(l.problems())); diff != "" {
			t.Errorf("%s: number of problems (-want +got):\n%s", step.name, diff)
		}
	}
}

func TestLedgerKnowsServicesThatWereLeftOut(t *testing.T) {
	l, log := logged()
	key := model.ServiceKey{Namespace: "default", Name: "web"}
	l.replaced(map[model.ServiceKey]uint64{key: 1})
	if got := log(); got != "" {
		t.Errorf("logged %q about nothing", got)
	}
	l.leftOut(key, 1, errors.New("bad cluster"))
	if got := log(); !strings.Contains(got, "level=WARN") || !strings.Contains(got, "bad cluster") {
		t.Errorf("logged %q", got)
	}
	if p := l.problems(); len(p) != 1 || p[0].Object != "Service default/web" || p[0].Reason != model.InvalidObject {
		t.Errorf("problems %+v", p)
	}
	l.leftOut(key, 2, errors.New("bad cluster")) // While the cache takes the next unit, which is no better.
	l.replaced(map[model.ServiceKey]uint64{key: 2})
	if got := log(); got != "" || len(l.problems()) != 1 {
		t.Errorf("logged %q, problems %+v", got, l.problems())
	}
	l.replaced(map[model.ServiceKey]uint64{key: 3})
	if got := log(); !strings.Contains(got, "solved") || len(l.problems()) != 0 {
		t.Errorf("logged %q, problems %+v", got, l.problems())
	}
}

func TestLedgerDoesNotFloodTheLog(t *testing.T) {
	l, log := logged()
	var many []model.Problem
	for i := range 10_000 {
		many = append(many, model.Problem{Object: fmt.Sprintf("Service default/s%05d", i), Reason: model.InvalidAddress})
	}
	l.setWorld(many)
	lines := strings.Split(strings.TrimSpace(log()), "\n")
	if len(lines) != maxLogged+1 || !strings.Contains(lines[maxLogged], "more=9980") {
		t.Errorf("%d lines, the last %q", len(lines), lines[len(lines)-1])
	}
}

// A problem of a unit that is replaced, or gone, is solved.
func TestReplacedUnitHasNoProblem(t *testing.T) {
	l, _ := logged()
	c := cache.New(cache.Config{})
	m, err := newMetrics(metricnoop.NewMeterProvider().Meter(""))
	if err != nil {
		t.Fatal(err)
	}
	r := newReceipts(tracenoop.NewTracerProvider().Tracer(""), m, slog.New(slog.DiscardHandler))
	r.cache = c
	o := newTranslator(&translator{queue: source.NewQueue(), ledger: l, receipts: r, metrics: m, log: slog.New(slog.DiscardHandler)})
	key := model.ServiceKey{Namespace: "default", Name: "web"}
	o.apply(source.Batch{Synced: true})
	gone := model.Object{Key: model.ObjectKey{Kind: model.KindService, Namespace: key.Namespace, Name: key.Name}}
	there := gone
	there.Service = &model.Service{Key: key}
	for _, object := range []model.Object{there, gone} {
		l.leftOut(key, 77, errors.New("bad cluster")) // As an earlier unit's Resources does.
		o.apply(source.Batch{Synced: true, Events: []source.Event{{Object: object}}})
		if p := l.problems(); len(p) != 0 {
			t.Errorf("still listed: %+v", p)
		}
	}
}
