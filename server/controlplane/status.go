package controlplane

import (
	"cmp"
	"time"

	"github.com/fairlead/fairlead/translate/model"
)

// Status is what the process knows, for people and for tools: the answer to GET /debug/status.
type Status struct {
	Ready    bool            `json:"ready"`
	Reason   string          `json:"reason,omitempty"` // Why it is not ready.
	Publish  uint64          `json:"publish"`          // The sequence number of the last publish.
	World    WorldStatus     `json:"world"`
	Nodes    []NodeStatus    `json:"nodes"` // Those that are connected, by name.
	Problems []model.Problem `json:"problems"`
}

// WorldStatus is how much there is.
type WorldStatus struct {
	Services  int64 `json:"services"`
	Frontends int64 `json:"frontends"`
	Endpoints int64 `json:"endpoints"`
	Nodes     int64 `json:"nodes"`
}

// NodeStatus is what is known of a node that is connected.
type NodeStatus struct {
	Node       string       `json:"node"`
	Applied    uint64       `json:"applied"`              // The last publish that it has completely.
	LagSeconds float64      `json:"lagSeconds,omitempty"` // How long ago the first one was that it lacks.
	Types      []TypeStatus `json:"types"`
}

// TypeStatus is what is known of one type of resource on one of the node's streams.
type TypeStatus struct {
	Type       string `json:"type"`
	Protocol   string `json:"protocol"`
	Subscribed int    `json:"subscribed"` // Names, besides the wildcard.
	Wildcard   bool   `json:"wildcard"`
	Sent       uint64 `json:"sent"`
	Applied    uint64 `json:"applied"`
	Nack       string `json:"nack,omitempty"` // Why the client rejected what it was sent.
}

// Status returns what the process knows. It is safe for concurrent use.
func (s *Server) Status() Status {
	status := Status{
		Publish: s.receipts.last(),
		World: WorldStatus{
			Services:  s.metrics.services.Load(),
			Frontends: s.metrics.frontends.Load(),
			Endpoints: s.metrics.endpoints.Load(),
			Nodes:     s.metrics.nodes.Load(),
		},
		Nodes:    []NodeStatus{},
		Problems: append([]model.Problem{}, s.ledger.problems()...),
	}
	if err := s.notReady(); err != nil {
		status.Reason = err.Error()
	} else {
		status.Ready = true
	}
	for _, t := range s.cache.Status() {
		if n := len(status.Nodes); n == 0 || status.Nodes[n-1].Node != t.Node {
			status.Nodes = append(status.Nodes, NodeStatus{Node: t.Node, Applied: status.Publish})
		}
		node := &status.Nodes[len(status.Nodes)-1]
		node.Applied = min(node.Applied, t.Applied)
		node.Types = append(node.Types, TypeStatus{
			Type:       cmp.Or(typeNames[t.TypeURL], t.TypeURL),
			Protocol:   t.Protocol,
			Subscribed: t.Subscribed,
			Wildcard:   t.Wildcard,
			Sent:       t.Sent,
			Applied:    t.Applied,
			Nack:       t.Nack,
		})
	}
	for i := range status.Nodes {
		if at, ok := s.receipts.published(status.Nodes[i].Applied + 1); ok {
			status.Nodes[i].LagSeconds = time.Since(at).Seconds()
		}
	}
	return status
}
