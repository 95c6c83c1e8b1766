package events

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/fairlead/fairlead/server/controlplane/status"
)

// patience is how long a node may not forward before it is written about: an agent that is replaced, or whose replica is, comes
// back sooner.
const patience = 15 * time.Second

// spell is a time in which a node does not forward.
type spell struct {
	since time.Time // When the Writer first found it so.
	told  trouble   // What was last told of it, and when; zero: nothing yet.
	at    time.Time
}

// troubleWith returns what to tell of a node in a state. Other components write about nodes, too, so the reasons name this one.
func troubleWith(node string, state status.State, reason string) trouble {
	return trouble{
		object: nodeKey(node), reason: "Fairlead" + string(state), message: reason,
		ending: "Fairlead" + string(status.Forwarding), endsWith: "the node forwards Services again",
	}
}

// lookAtNodes writes about the nodes that do not forward.
func (w *Writer) lookAtNodes(ctx context.Context, replicas []replica) {
	all, rows := w.cfg.Nodes(), map[string]bool{}
	var elsewhere map[string]status.State
	complete := true
	if slices.ContainsFunc(all, func(n status.Node) bool { return !n.Connected }) {
		elsewhere, complete = w.agentsElsewhere(ctx, replicas)
	}
	for _, n := range all {
		rows[n.Node] = true
		state, mine := n.State, true
		if !n.Connected {
			there, connected := elsewhere[n.Node]
			switch {
			case connected:
				state, mine = there, false
			case !complete:
				continue // A replica that does not answer may have the agent.
			default:
				mine = w.picked(nodeKey(n.Node), replicas)
			}
		}
		switch {
		case state == status.Forwarding:
			w.nodeForwards(ctx, n.Node)
		case mine:
			w.nodeFails(ctx, n, state)
		default:
			delete(w.nodes, n.Node) // Another replica writes about it.
		}
	}
	maps.DeleteFunc(w.nodes, func(name string, _ *spell) bool { return !rows[name] })
}

// nodeForwards writes that a node forwards, if it was told that it does not.
func (w *Writer) nodeForwards(ctx context.Context, name string) {
	s := w.nodes[name]
	if s == nil {
		return
	}
	if s.at.IsZero() || w.write(ctx, s.told, true) {
		delete(w.nodes, name)
	}
}

// nodeFails writes that a node does not forward, once it has not for a while.
func (w *Writer) nodeFails(ctx context.Context, n status.Node, state status.State) {
	now := w.now()
	s := w.nodes[n.Node]
	if s == nil {
		s = &spell{since: now}
		w.nodes[n.Node] = s
	}
	t := troubleWith(n.Node, state, n.Reason)
	if now.Sub(s.since) < patience || s.told == t && now.Sub(s.at) < repeat {
		return
	}
	if w.write(ctx, t, false) {
		s.told, s.at = t, now
	}
}
