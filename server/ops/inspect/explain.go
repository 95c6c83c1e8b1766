package inspect

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/fairlead/fairlead/server/ops/explain"
	"github.com/fairlead/fairlead/server/ops/offline"
	"github.com/fairlead/fairlead/server/ops/reach"
	"github.com/fairlead/fairlead/translate/model"
)

// Question is a query about a Service.
type Question struct {
	Service string
	Nodes   []string // None: all.
	From    string   // An origin's name; empty: all.
	Format  string   // One of Formats.

	Manifests offline.Config // The manifests to read, if it has paths.
	Replicas  reach.Replicas // Otherwise the control plane to query.
}

// Formats are the forms of an answer.
var Formats = []string{"text", "json", "yaml"}

// AnswerQuestion writes the answer.
func AnswerQuestion(ctx context.Context, q Question, w io.Writer) error {
	origins := []string{"", model.FromPod.String(), model.FromNode.String(), model.FromOutside.String()}
	switch {
	case !slices.Contains(origins, q.From):
		return fmt.Errorf("origin %q: choose one of %q", q.From, origins[1:])
	case !slices.Contains(Formats, q.Format):
		return fmt.Errorf("format %q: choose one of %q", q.Format, Formats)
	}
	report, err := ask(ctx, q)
	if err != nil {
		return err
	}
	if q.Format == "text" {
		_, err := io.WriteString(w, report.Text(q.From))
		return err
	}
	return Encode(w, q.Format, report)
}

// ask explains the manifests or queries the control plane.
func ask(ctx context.Context, q Question) (explain.Report, error) {
	if len(q.Manifests.Paths) == 0 {
		return Explain(ctx, q.Replicas, q.Service, q.Nodes)
	}
	key, err := model.ParseServiceKey(q.Service)
	if err != nil {
		return explain.Report{}, err
	}
	world, err := offline.World(q.Manifests)
	if err != nil {
		return explain.Report{}, err
	}
	report, err := explain.New(world, key, q.Nodes)
	if errors.Is(err, explain.ErrNoService) {
		err = withUnread(err, world.Problems())
	}
	return report, err
}

// withUnread adds to an error what could not be read of the manifests, which may hold the object of the question.
func withUnread(err error, problems []model.Problem) error {
	unread := slices.DeleteFunc(problems, func(p model.Problem) bool {
		return p.Reason != model.Unreadable && p.Reason != model.InvalidObject && p.Reason != model.UnsupportedObject
	})
	if len(unread) == 0 {
		return err
	}
	return fmt.Errorf("%w; parts of the manifests could not be read (%d), the first: %s: %s", err, len(unread), unread[0].Object, unread[0].Message)
}
