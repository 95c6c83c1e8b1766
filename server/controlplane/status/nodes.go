package status

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/fairlead/fairlead/cache"
	"github.com/fairlead/fairlead/translate/envoy"
	"github.com/fairlead/fairlead/translate/frontendpb"
	"github.com/fairlead/fairlead/translate/model"
)

// State says whether a node forwards what was published. The list is closed.
type State string

// The states, from the best to the worst.
const (
	Forwarding State = "Forwarding" // It forwards so, or has done so until moments ago and applies what is new.
	Behind     State = "Behind"     // It has lacked a change for longer than patience.
	Rejecting  State = "Rejecting"  // Its agent has rejected resources, and it forwards what it had.
	NotReady   State = "NotReady"   // Its agent reports that packets do not get there.
	Unknown    State = "Unknown"    // No replica that answers has its agent, and another does not answer.
	NoAgent    State = "NoAgent"    // Its agent is connected to no replica: it forwards at best the last state on its disk.
)

// States are the states that a replica knows of the agents that are connected to it.
var States = []State{Forwarding, Behind, Rejecting, NotReady}

const (
	// patience is how long a node may take to apply a change before it is behind. A change takes milliseconds; a node waits
	// for an Envoy that hangs up to ten seconds, and is not well meanwhile.
	patience = 5 * time.Second
	// look is how often the states are recorded, which is as exact as the time since which a node is in one.
	look = 5 * time.Second
)

// states holds in which state each node is, and since when.
type states struct {
	mu       sync.Mutex
	began    time.Time // Before that nothing is known.
	expected []string  // Nodes that have an object, in order. Replaced, never altered.
	nodes    map[string]spell
}

// spell is a time that a node has been in a state.
type spell struct {
	state State
	since time.Time
}

// SetNodes sets the names of all Node objects, in order: each of them has to forward. The caller does not alter them later.
func (t *Tracker) SetNodes(names []string) {
	t.states.mu.Lock()
	defer t.states.mu.Unlock()
	t.states.expected = names
}

// Run records the states of nodes until ctx ends, so that it is known how long one has lasted whenever somebody asks.
func (t *Tracker) Run(ctx context.Context) error {
	tick := time.NewTicker(look)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			t.Nodes()
		}
	}
}

// Nodes returns the state of every node that has an object or an agent that is connected, by name. It is safe for concurrent use.
func (t *Tracker) Nodes() []Node {
	rows, _ := t.nodeRows(t.last())
	return rows
}

// nodeRows returns the state of every node that has an object or an agent that is connected, by name, and the number of other
// clients. Only agents subscribe to the description of their node: gRPC programs may not, and are no nodes.
func (t *Tracker) nodeRows(last uint64) (rows []Node, programs int) {
	t.states.mu.Lock()
	defer t.states.mu.Unlock()
	streams := t.cache.Status()
	now := time.Now()
	for len(streams) > 0 {
		n := slices.IndexFunc(streams, func(s cache.StreamStatus) bool { return s.Node != streams[0].Node })
		if n < 0 {
			n = len(streams)
		}
		of := streams[:n]
		streams = streams[n:]
		if slices.ContainsFunc(of, func(s cache.StreamStatus) bool { return s.TypeURL == envoy.NodeType }) {
			rows = append(rows, t.connectedRow(of, last, now))
		} else {
			programs++
		}
	}
	connected := rows
	for _, name := range t.states.expected {
		if _, found := slices.BinarySearchFunc(connected, name, func(n Node, name string) int { return cmp.Compare(n.Node, name) }); !found {
			rows = append(rows, Node{Node: name, State: NoAgent, Reason: noAgent, Types: []Type{}})
		}
	}
	slices.SortFunc(rows, func(a, b Node) int { return cmp.Compare(a.Node, b.Node) })
	t.states.date(rows, now)
	return rows, programs
}

// noAgent is the reason of NoAgent.
const noAgent = "no agent is connected: the node forwards at best by the last state on its disk; look at its agent's pod and log"

// connectedRow returns the state of a node whose agent has the streams.
func (t *Tracker) connectedRow(streams []cache.StreamStatus, last uint64, now time.Time) Node {
	row := Node{Node: streams[0].Node, Connected: true, State: Forwarding, Version: streams[0].Client.GetUserAgentVersion(), Applied: last, Types: []Type{}}
	var rejects string
	var report frontendpb.Report
	for _, s := range streams {
		r := frontendpb.ReportOf(s.Client)
		if r.NotReady != "" {
			report = r // Beside a stream that is dead and not yet found to be, the worse counts.
		}
		if len(r.Problems) > len(row.Problems) {
			row.Problems = r.Problems
		}
		row.Applied = min(row.Applied, s.Applied)
		name := cmp.Or(TypeNames[s.TypeURL], s.TypeURL)
		row.Types = append(row.Types, Type{
			Type: name, Protocol: s.Protocol, Subscribed: s.Subscribed, Wildcard: s.Wildcard, Sent: s.Sent, Applied: s.Applied, Nack: s.Nack,
		})
		if s.Nack != "" {
			rejects = name + ": " + s.Nack
		}
	}
	for i := range row.Problems {
		row.Problems[i].Object = string(model.KindNode) + " " + row.Node // An agent speaks of no other object.
	}
	lacks := t.lacksSince(row.Applied)
	if !lacks.IsZero() {
		row.LagSeconds = now.Sub(lacks).Seconds()
	}
	switch {
	case report.NotReady != "":
		row.State, row.Reason, row.Since = NotReady, report.NotReady, report.Since
	case rejects != "":
		row.State, row.Reason = Rejecting, "the agent rejects "+rejects
	case now.Sub(lacks) > patience && !lacks.IsZero():
		row.State, row.Since = Behind, lacks
		row.Reason = fmt.Sprintf("the node lacks changes from publish %d on; its agent's log says why", row.Applied+1)
	}
	return row
}

// date sets since when each row's node is in its state, and forgets nodes that have no row.
func (s *states) date(rows []Node, now time.Time) {
	nodes := make(map[string]spell, len(rows))
	for i := range rows {
		row := &rows[i]
		was, known := s.nodes[row.Node]
		since := now
		switch {
		case known && was.state == row.State:
			since = was.since
		case !known && row.State == NoAgent && s.nodes == nil:
			since = s.began // It has not been seen since this process began.
		}
		if !row.Since.IsZero() && row.Since.Before(since) {
			since = row.Since // The node, or the first change that it lacks, knows better.
		}
		row.Since = since
		nodes[row.Node] = spell{row.State, since}
	}
	s.nodes = nodes
}

// lacksSince returns when the first publish happened that a node lacks which has all up to applied; zero if it lacks none. What
// is no longer remembered happened before the oldest that is.
func (t *Tracker) lacksSince(applied uint64) time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	i, _ := slices.BinarySearchFunc(t.kept, applied+1, func(p *Publication, seq uint64) int { return cmp.Compare(p.seq, seq) })
	if i == len(t.kept) {
		return time.Time{}
	}
	return t.kept[i].published
}
