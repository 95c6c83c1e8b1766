package status

import (
	"context"
	"log/slog"
	"slices"

	"github.com/fairlead/fairlead/translate/model"
)

// maxLogged is how many problems one change of the world logs. Ten thousand bad Services are one mistake.
const maxLogged = 20

// SetProblems replaces what is wrong, and logs the difference. It has one caller: of two, each would log the other's
// problems as solved.
func (t *Tracker) SetProblems(problems []model.Problem) {
	problems = slices.Clone(problems)
	slices.SortFunc(problems, model.Problem.Compare)
	problems = slices.Compact(problems)
	t.mu.Lock()
	before := t.problems
	t.problems = problems
	t.mu.Unlock()
	t.report("problem", slog.LevelWarn, without(problems, before))
	t.report("problem solved", slog.LevelInfo, without(before, problems))
}

// without returns the problems of a that are not in b, in order. Both are sorted.
func without(a, b []model.Problem) []model.Problem {
	return slices.DeleteFunc(slices.Clone(a), func(p model.Problem) bool {
		_, found := slices.BinarySearchFunc(b, p, model.Problem.Compare)
		return found
	})
}

func (t *Tracker) report(message string, level slog.Level, problems []model.Problem) {
	for i, p := range problems {
		if i == maxLogged {
			t.log.Log(context.Background(), level, message+", and more: see /debug/status", "more", len(problems)-maxLogged)
			return
		}
		t.log.Log(context.Background(), level, message, "object", p.Object, "reason", p.Reason, "message", p.Message)
	}
}

// Problems returns everything that is wrong, in order. It is not to be altered.
func (t *Tracker) Problems() []model.Problem {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.problems
}
