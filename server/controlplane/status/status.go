package status

import (
	"time"

	"github.com/fairlead/fairlead/translate/model"
)

// Status is the state of the process, for people and for tools: the response to GET /debug/status.
type Status struct {
	Ready    bool            `json:"ready"`
	Reason   string          `json:"reason,omitempty"` // Why it is not ready.
	Version  string          `json:"version,omitempty"`
	Publish  uint64          `json:"publish"` // The sequence number of the last publish.
	World    World           `json:"world"`
	Nodes    []Node          `json:"nodes"`    // Those that have an object or an agent that is connected, by name.
	Programs int             `json:"programs"` // gRPC programs that are connected.
	Problems []model.Problem `json:"problems"`
}

// World is how much there is.
type World struct {
	Services  int64 `json:"services"`
	Frontends int64 `json:"frontends"`
	Endpoints int64 `json:"endpoints"`
	Nodes     int64 `json:"nodes"`
}

// Node is what is known of a node.
type Node struct {
	Node       string    `json:"node"`
	State      State     `json:"state"`
	Since      time.Time `json:"since"`                // When that began, as far as this replica knows.
	Reason     string    `json:"reason,omitempty"`     // Why it does not forward, and what to do.
	Connected  bool      `json:"connected"`            // Its agent is connected to this replica.
	Version    string    `json:"version,omitempty"`    // Of its agent.
	Applied    uint64    `json:"applied"`              // The last publish that it has completely.
	LagSeconds float64   `json:"lagSeconds,omitempty"` // How long ago the first one was that it lacks.
	Types      []Type    `json:"types"`

	Problems []model.Problem `json:"problems,omitempty"` // Those that its agent has found on the node; also among the Status's.
}

// problemsOf returns the problems that the agents of the nodes have found.
func problemsOf(rows []Node) []model.Problem {
	var all []model.Problem
	for _, n := range rows {
		all = append(all, n.Problems...)
	}
	return all
}

// Type is what is known of one type of resource on one of the node's streams.
type Type struct {
	Type       string `json:"type"`
	Protocol   string `json:"protocol"`
	Subscribed int    `json:"subscribed"` // Names, besides the wildcard.
	Wildcard   bool   `json:"wildcard"`
	Sent       uint64 `json:"sent"`
	Applied    uint64 `json:"applied"`
	Nack       string `json:"nack,omitempty"` // Why the client rejected what it was sent.
}

// Service says which nodes forward the newest change of a Service: the response to GET /debug/service.
type Service struct {
	Service string        `json:"service"`
	Publish uint64        `json:"publish"` // The sequence number of the newest change.
	Nodes   []ServiceNode `json:"nodes"`   // Every node that has an object or an agent connected, by name.

	// Versions are the resource versions of the Service and its slices up to which this replica has published, by object.
	Versions map[string]string `json:"versions,omitempty"`
}

// ServiceNode says whether a node forwards the newest change of a Service.
type ServiceNode struct {
	Node      string `json:"node"`
	Connected bool   `json:"connected"` // An agent of the node is connected to this replica.
	Forwards  bool   `json:"forwards"`
	Reason    string `json:"reason,omitempty"` // Why it does not.
}

// worldNow returns how much there is.
func (t *Tracker) worldNow() World {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.world
}

// Status returns the state, without whether the process is ready. It is safe for concurrent use.
func (t *Tracker) Status() Status {
	s := Status{Publish: t.last(), World: t.worldNow(), Nodes: []Node{}, Problems: append([]model.Problem{}, t.Problems()...)}
	rows, programs := t.nodeRows(s.Publish)
	s.Nodes, s.Programs = append(s.Nodes, rows...), programs
	s.Problems = append(s.Problems, problemsOf(rows)...)
	return s
}
