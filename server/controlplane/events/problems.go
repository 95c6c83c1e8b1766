package events

import (
	"context"
	"slices"

	"github.com/fairlead/fairlead/translate/model"
)

// troubleOf returns what to tell of a problem; false if it has no object that Events could be about.
func troubleOf(p model.Problem) (trouble, bool) {
	key, ok := keyOf(p)
	return trouble{
		object: key, reason: string(p.Reason), message: p.Message,
		ending: "ProblemSolved", endsWith: "no longer " + string(p.Reason) + ": " + p.Message,
	}, ok
}

// lookAtProblems writes about the problems of objects that this replica was picked for.
func (w *Writer) lookAtProblems(ctx context.Context, replicas []replica) {
	all := w.cfg.Problems()
	for p := range w.problems {
		if slices.Contains(all, p) {
			continue
		}
		if t, _ := troubleOf(p); w.write(ctx, t, true) {
			delete(w.problems, p)
		}
	}
	for _, p := range all {
		t, ok := troubleOf(p)
		if !ok || !w.picked(t.object, replicas) {
			delete(w.problems, p) // Another replica writes about the object now.
			continue
		}
		if at, told := w.problems[p]; told && w.now().Sub(at) < repeat {
			continue
		}
		if w.write(ctx, t, false) {
			w.problems[p] = w.now()
		}
	}
}
