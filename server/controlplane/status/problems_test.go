package status

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/translate/model"
)

// logged returns a tracker and a function that returns what it has logged since the last call.
func logged(t *testing.T) (*Tracker, func() string) {
	t.Helper()
	var out bytes.Buffer
	handler := slog.NewTextHandler(&out, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}})
	tracker, _ := newTestTracker(t, slog.New(handler))
	return tracker, func() string {
		defer out.Reset()
		return out.String()
	}
}

func TestOnlyChangesOfProblemsAreLogged(t *testing.T) {
	l, log := logged(t)
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
		l.SetProblems(step.now)
		if diff := cmp.Diff(step.want, log()); diff != "" {
			t.Errorf("%s: log (-want +got):\n%s", step.name, diff)
		}
		if diff := cmp.Diff(len(step.now), len(l.Problems())); diff != "" {
			t.Errorf("%s: number of problems (-want +got):\n%s", step.name, diff)
		}
	}
}

func TestProblemsDoNotFloodTheLog(t *testing.T) {
	l, log := logged(t)
	var many []model.Problem
	for i := range 10_000 {
		many = append(many, model.Problem{Object: fmt.Sprintf("Service default/s%05d", i), Reason: model.InvalidAddress})
	}
	l.SetProblems(many)
	lines := strings.Split(strings.TrimSpace(log()), "\n")
	if len(lines) != maxLogged+1 || !strings.Contains(lines[maxLogged], "more=9980") {
		t.Errorf("%d lines, the last %q", len(lines), lines[len(lines)-1])
	}
}
