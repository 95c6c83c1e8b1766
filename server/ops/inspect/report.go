package inspect

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/fairlead/fairlead/server/controlplane/status"
	"github.com/fairlead/fairlead/server/ops/reach"
	"github.com/fairlead/fairlead/translate/model"
)

// Report is the state of a control plane with all its replicas, and of all nodes.
type Report struct {
	Replicas []Replica       `json:"replicas"`
	Nodes    []Node          `json:"nodes"`
	Programs int             `json:"programs"` // gRPC programs that are connected.
	Problems []model.Problem `json:"problems"`
}

// Replica is the state of one replica.
type Replica struct {
	Replica string       `json:"replica"`
	Reached bool         `json:"reached"` // It has answered. Otherwise nothing but the reason is known.
	Ready   bool         `json:"ready"`
	Reason  string       `json:"reason,omitempty"` // Why it is not ready, or not reached.
	Version string       `json:"version,omitempty"`
	Publish uint64       `json:"publish"` // The sequence number of its last publish.
	World   status.World `json:"world"`
}

// Node is the state of a node, as the replica knows it that its agent is connected to.
type Node struct {
	status.Node
	Replica string `json:"replica,omitempty"` // Empty if it is connected to none.
}

// Ask asks all replicas, at once. An error means that not even their names are known.
func Ask(ctx context.Context, replicas reach.Replicas) (Report, error) {
	all, err := replicas.List(ctx)
	if err != nil {
		return Report{}, fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	answers, errs := make([]status.Status, len(all)), make([]error, len(all))
	var asking sync.WaitGroup
	for i, r := range all {
		asking.Go(func() { errs[i] = get(ctx, r, "/debug/status", nil, &answers[i]) })
	}
	asking.Wait()
	report := Report{Replicas: []Replica{}, Nodes: []Node{}, Problems: []model.Problem{}}
	for i, r := range all {
		report.add(r.Name, answers[i], errs[i])
	}
	report.finish()
	return report, nil
}

// add adds the answer of a replica.
func (r *Report) add(name string, s status.Status, err error) {
	if err != nil {
		r.Replicas = append(r.Replicas, Replica{Replica: name, Reason: strings.TrimPrefix(err.Error(), ErrUnreachable.Error()+": "+name+": ")})
		return
	}
	r.Replicas = append(r.Replicas, Replica{
		Replica: name, Reached: true, Ready: s.Ready, Reason: s.Reason, Version: s.Version, Publish: s.Publish, World: s.World,
	})
	for _, n := range s.Nodes {
		row := Node{Node: n}
		if n.Connected {
			row.Replica = name
		}
		r.Nodes = append(r.Nodes, row)
	}
	r.Programs += s.Programs
	r.Problems = append(r.Problems, s.Problems...)
}

// finish puts together what the replicas say about the same node or object.
func (r *Report) finish() {
	slices.SortFunc(r.Problems, model.Problem.Compare)
	r.Problems = slices.Compact(r.Problems)
	// First what a replica knows that has the agent. If none has, the last to have seen the agent knows best since when.
	slices.SortStableFunc(r.Nodes, func(a, b Node) int {
		return cmp.Or(strings.Compare(a.Node.Node, b.Node.Node), -compareBool(a.Connected, b.Connected), -a.Since.Compare(b.Since))
	})
	r.Nodes = slices.CompactFunc(r.Nodes, func(a, b Node) bool { return a.Node.Node == b.Node.Node })
	silent := r.silent()
	if len(silent) == 0 {
		return
	}
	for i := range r.Nodes {
		if n := &r.Nodes[i]; !n.Connected {
			n.State, n.Reason = status.Unknown, "no replica that answers has its agent, and "+strings.Join(silent, ", ")+" gives no answer"
		}
	}
}

// compareBool orders false before true.
func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	default:
		return -1
	}
}

// silent returns the names of the replicas that have not answered.
func (r *Report) silent() []string {
	var names []string
	for _, replica := range r.Replicas {
		if !replica.Reached {
			names = append(names, replica.Replica)
		}
	}
	return names
}

// Err returns what asks for attention, by the most urgent of the errors of this package; nil if all is well.
func (r *Report) Err() error {
	notReady := slices.ContainsFunc(r.Replicas, func(replica Replica) bool { return !replica.Ready })
	notForwarding := slices.ContainsFunc(r.Nodes, func(n Node) bool { return n.State != status.Forwarding })
	switch {
	case len(r.silent()) > 0:
		return ErrUnreachable
	case notReady || notForwarding:
		return ErrNotForwarding
	case len(r.Problems) > 0:
		return ErrProblems
	}
	return nil
}
