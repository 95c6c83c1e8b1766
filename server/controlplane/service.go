package controlplane

import (
	"fmt"

	"github.com/fairlead/fairlead/server/ops/explain"
	"github.com/fairlead/fairlead/translate/model"
)

// ServiceStatus says which nodes forward the newest change of a Service: the answer to GET /debug/service.
type ServiceStatus struct {
	Service string              `json:"service"`
	Publish uint64              `json:"publish"` // The sequence number of the newest change.
	Nodes   []ServiceNodeStatus `json:"nodes"`   // Every node that has an object or an agent connected, by name.
}

// ServiceNodeStatus says whether a node forwards the newest change of a Service.
type ServiceNodeStatus struct {
	Node      string `json:"node"`
	Connected bool   `json:"connected"` // An agent of the node is connected to this replica.
	Forwards  bool   `json:"forwards"`
}

// Explain says what each node does with a Service, and why. No nodes means all. It is safe for concurrent use.
func (s *Server) Explain(service string, nodes []string) (explain.Report, error) {
	key, err := model.ParseServiceKey(service)
	if err != nil {
		return explain.Report{}, err
	}
	s.translator.mu.Lock()
	defer s.translator.mu.Unlock()
	return explain.New(s.translator.world, key, nodes)
}

// ServiceStatus says which nodes forward the newest change of a Service that this replica has seen. It is safe for concurrent
// use.
func (s *Server) ServiceStatus(service string) (ServiceStatus, error) {
	key, err := model.ParseServiceKey(service)
	if err != nil {
		return ServiceStatus{}, err
	}
	s.translator.mu.Lock()
	seq, names := max(s.translator.publishes[key], 1), s.translator.world.Nodes()
	known := s.translator.world.Plan(key) != nil
	s.translator.mu.Unlock()
	if !known {
		return ServiceStatus{}, fmt.Errorf("no Service %s is forwarded: it does not exist, or it is headless, an ExternalName, or for another proxy", key)
	}
	applied := map[string]uint64{}
	for _, n := range s.Status().Nodes {
		applied[n.Node] = n.Applied
	}
	status := ServiceStatus{Service: key.String(), Publish: seq, Nodes: []ServiceNodeStatus{}}
	for _, name := range names {
		at, connected := applied[name]
		status.Nodes = append(status.Nodes, ServiceNodeStatus{Node: name, Connected: connected, Forwards: at >= seq})
	}
	return status, nil
}
