package events

import (
	"context"
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// reasonSolved is the reason of the Event that ends that of a problem.
const reasonSolved = "ProblemSolved"

// lookAtProblems writes about the problems of objects that this replica was picked for.
func (w *Writer) lookAtProblems(ctx context.Context, replicas []replica) {
	all := w.cfg.Problems()
	for p := range w.problems {
		if slices.Contains(all, p) {
			continue
		}
		key, _ := keyOf(p) // It had one when it was written.
		if w.write(ctx, key, corev1.EventTypeNormal, reasonSolved, "no longer "+string(p.Reason)+": "+p.Message) {
			delete(w.problems, p)
		}
	}
	for _, p := range all {
		key, ok := keyOf(p)
		if !ok || !w.picked(key, replicas) {
			delete(w.problems, p) // Another replica writes about the object now.
			continue
		}
		if at, written := w.problems[p]; written && w.now().Sub(at) < repeat {
			continue
		}
		if w.write(ctx, key, corev1.EventTypeWarning, string(p.Reason), p.Message) {
			w.problems[p] = w.now()
		}
	}
}
