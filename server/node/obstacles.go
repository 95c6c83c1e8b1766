package node

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"github.com/fairlead/fairlead/server/node/hostcheck"
	"github.com/fairlead/fairlead/translate/model"
)

// hostInterval is how often the agent looks for what stands in the way on its node. A look takes some 10 ms of a core.
const hostInterval = 15 * time.Second

// watchHost looks at the node, and sends what stands in the way whenever that has changed, until ctx ends. Notes are for people who
// ask: what may be wrong on a node that forwards is no problem of its.
func watchHost(ctx context.Context, node string, every time.Duration, found chan<- []model.Problem, log *slog.Logger) error {
	config := hostcheck.DefaultConfig()
	config.Root = "" // The node's files are not visible in the agent's container.
	tick := time.NewTicker(every)
	defer tick.Stop()
	var last []model.Problem
	var failure string
	for {
		problems, err := hostProblems(ctx, config, node)
		if err != nil && ctx.Err() == nil && err.Error() != failure {
			log.Warn("cannot look for what stands in the way of Services' packets", "error", err)
		}
		if failure = ""; err != nil {
			failure = err.Error()
		} else if !slices.Equal(problems, last) {
			logDifference(log, last, problems)
			select {
			case <-ctx.Done():
				return nil
			case found <- problems:
				last = problems
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// hostProblems returns what stands in the way on the node, in order.
func hostProblems(ctx context.Context, config hostcheck.Config, node string) ([]model.Problem, error) {
	results, err := hostcheck.Run(ctx, config)
	if err != nil {
		return nil, err
	}
	var problems []model.Problem
	for _, r := range results {
		if r.Level == hostcheck.Problem {
			problems = append(problems, model.Problem{
				Object: "Node " + node, Reason: model.HostObstacle, Message: r.Check + ": " + r.Found + "; fix: " + r.Fix,
			})
		}
	}
	slices.SortFunc(problems, model.Problem.Compare)
	return problems, nil
}

// logDifference logs what is new, and what is over.
func logDifference(log *slog.Logger, before, now []model.Problem) {
	for _, p := range now {
		if !slices.Contains(before, p) {
			log.Warn("something stands in the way of Services' packets on this node", "problem", p.Message)
		}
	}
	for _, p := range before {
		if !slices.Contains(now, p) {
			log.Info("no longer in the way of Services' packets on this node", "problem", p.Message)
		}
	}
}
