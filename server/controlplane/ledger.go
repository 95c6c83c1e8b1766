package controlplane

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"

	"github.com/fairlead/fairlead/translate/model"
)

// maxLogged is how many problems one change of the world logs. Ten thousand bad Services are one mistake.
const maxLogged = 20

// ledger remembers what is wrong and logs when that changes. It is safe for concurrent use.
type ledger struct {
	log *slog.Logger

	mu       sync.Mutex // Guards what follows. Nothing else is locked under it.
	world    []model.Problem
	rendered map[model.ServiceKey]leftOut // Services whose resources were left out.
	known    map[model.Problem]bool       // All of them, as logged.
}

// leftOut is why a contribution's resources were left out.
type leftOut struct {
	unit    uint64
	problem model.Problem
}

func newLedger(log *slog.Logger) *ledger {
	return &ledger{log: log, rendered: map[model.ServiceKey]leftOut{}, known: map[model.Problem]bool{}}
}

// setWorld replaces what is wrong with the cluster's objects.
func (l *ledger) setWorld(problems []model.Problem) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.world = problems
	l.update()
}

// leftOut says what keeps a Service's resources from being published, as far as one contribution of it is concerned.
func (l *ledger) leftOut(key model.ServiceKey, unit uint64, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rendered[key] = leftOut{unit, model.Problem{
		Object:  model.ObjectKey{Kind: model.KindService, Namespace: key.Namespace, Name: key.Name}.String(),
		Reason:  model.InvalidObject,
		Message: fmt.Sprintf("its resources would be rejected by Envoy, so the Service is not forwarded: %v", err),
	}}
	l.update()
}

// replaced says which contribution each of some Services has now; 0 is none. What earlier ones said is void. It is called once the cache
// has the contributions: until then it may ask an earlier one for a variant.
func (l *ledger) replaced(units map[model.ServiceKey]uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	before := len(l.rendered)
	maps.DeleteFunc(l.rendered, func(key model.ServiceKey, r leftOut) bool {
		unit, replaced := units[key]
		return replaced && r.unit != unit
	})
	if len(l.rendered) < before {
		l.update()
	}
}

// update logs the difference between what is wrong and what was. The lock is held.
func (l *ledger) update() {
	now := map[model.Problem]bool{}
	var appeared, solved []model.Problem
	for _, p := range l.all() {
		if now[p] = true; !l.known[p] {
			appeared = append(appeared, p)
		}
	}
	for p := range l.known {
		if !now[p] {
			solved = append(solved, p)
		}
	}
	l.known = now
	slices.SortFunc(solved, model.Problem.Compare)
	l.report("problem", slog.LevelWarn, appeared)
	l.report("problem solved", slog.LevelInfo, solved)
}

func (l *ledger) report(message string, level slog.Level, problems []model.Problem) {
	for i, p := range problems {
		if i == maxLogged {
			l.log.Log(context.Background(), level, message+", and more: see /debug/status", "more", len(problems)-maxLogged)
			return
		}
		l.log.Log(context.Background(), level, message, "object", p.Object, "reason", p.Reason, "message", p.Message)
	}
}

// all returns everything that is wrong, in order. The lock is held.
func (l *ledger) all() []model.Problem {
	all := slices.Clone(l.world)
	for _, r := range l.rendered {
		all = append(all, r.problem)
	}
	slices.SortFunc(all, model.Problem.Compare)
	return all
}

// problems returns everything that is wrong, in order.
func (l *ledger) problems() []model.Problem {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all()
}
