package events

import (
	"context"
	"maps"
	"slices"
	"time"

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

// lookAtProblems writes about the problems of objects that this replica was picked for, and about those that agents which are
// connected to it have found on their nodes. What an agent found that is connected to another replica now is that one's to tell.
func (w *Writer) lookAtProblems(ctx context.Context, replicas []replica) {
	w.tellProblems(ctx, w.problems, w.cfg.Problems(), func(t trouble) bool { return w.picked(t.object, replicas) })
	connected := map[model.ObjectKey]bool{}
	var found []model.Problem
	for _, n := range w.cfg.Nodes() {
		connected[nodeKey(n.Node)] = n.Connected
		found = append(found, n.Problems...)
	}
	maps.DeleteFunc(w.found, func(p model.Problem, _ time.Time) bool {
		t, _ := troubleOf(p)
		return !connected[t.object]
	})
	w.tellProblems(ctx, w.found, found, func(trouble) bool { return true })
}

// tellProblems writes about all problems that are this replica's, and that those are over which were told and are no longer among them.
func (w *Writer) tellProblems(ctx context.Context, told map[model.Problem]time.Time, all []model.Problem, mine func(trouble) bool) {
	for p := range told {
		if slices.Contains(all, p) {
			continue
		}
		if t, _ := troubleOf(p); w.write(ctx, t, true) {
			delete(told, p)
		}
	}
	for _, p := range all {
		t, ok := troubleOf(p)
		if !ok || !mine(t) {
			delete(told, p) // Another replica writes about the object now.
			continue
		}
		if at, before := told[p]; before && w.now().Sub(at) < repeat {
			continue
		}
		if w.write(ctx, t, false) {
			told[p] = w.now()
		}
	}
}
