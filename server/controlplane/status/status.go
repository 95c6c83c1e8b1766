package status

import (
	"cmp"
	"time"

	"github.com/fairlead/fairlead/translate/model"
)

// Status is the state of the process, for people and for tools: the response to GET /debug/status.
type Status struct {
	Ready    bool            `json:"ready"`
	Reason   string          `json:"reason,omitempty"` // Why it is not ready.
	Publish  uint64          `json:"publish"`          // The sequence number of the last publish.
	World    World           `json:"world"`
	Nodes    []Node          `json:"nodes"` // Those that are connected, by name.
	Problems []model.Problem `json:"problems"`
}

// World is how much there is.
type World struct {
	Services  int64 `json:"services"`
	Frontends int64 `json:"frontends"`
	Endpoints int64 `json:"endpoints"`
	Nodes     int64 `json:"nodes"`
}

// Node is what is known of a node that is connected.
type Node struct {
	Node       string  `json:"node"`
	Applied    uint64  `json:"applied"`              // The last publish that it has completely.
	LagSeconds float64 `json:"lagSeconds,omitempty"` // How long ago the first one was that it lacks.
	Types      []Type  `json:"types"`
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
}

// ServiceNode says whether a node forwards the newest change of a Service.
type ServiceNode struct {
	Node      string `json:"node"`
	Connected bool   `json:"connected"` // An agent of the node is connected to this replica.
	Forwards  bool   `json:"forwards"`
}

// worldNow returns how much there is.
func (t *Tracker) worldNow() World {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.world
}

// Status returns the state, without whether the process is ready. It is safe for concurrent use.
func (t *Tracker) Status() Status {
	status := Status{
		Publish:  t.last(),
		World:    t.worldNow(),
		Nodes:    []Node{},
		Problems: append([]model.Problem{}, t.Problems()...),
	}
	for _, s := range t.cache.Status() {
		if n := len(status.Nodes); n == 0 || status.Nodes[n-1].Node != s.Node {
			status.Nodes = append(status.Nodes, Node{Node: s.Node, Applied: status.Publish})
		}
		node := &status.Nodes[len(status.Nodes)-1]
		node.Applied = min(node.Applied, s.Applied)
		node.Types = append(node.Types, Type{
			Type:       cmp.Or(TypeNames[s.TypeURL], s.TypeURL),
			Protocol:   s.Protocol,
			Subscribed: s.Subscribed,
			Wildcard:   s.Wildcard,
			Sent:       s.Sent,
			Applied:    s.Applied,
			Nack:       s.Nack,
		})
	}
	for i := range status.Nodes {
		if at, ok := t.published(status.Nodes[i].Applied + 1); ok {
			status.Nodes[i].LagSeconds = time.Since(at).Seconds()
		}
	}
	return status
}
