package controlplane

import (
	"fmt"

	"github.com/fairlead/fairlead/server/controlplane/status"
	"github.com/fairlead/fairlead/server/ops/explain"
	"github.com/fairlead/fairlead/translate/model"
)

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

// Status returns the state of the process. It is safe for concurrent use.
func (s *Server) Status() status.Status {
	now := s.tracker.Status()
	if err := s.notReady(); err != nil {
		now.Reason = err.Error()
	} else {
		now.Ready = true
	}
	return now
}

// ServiceStatus says which nodes forward the newest change of a Service that this replica has seen. It is safe for concurrent
// use.
func (s *Server) ServiceStatus(service string) (status.Service, error) {
	key, err := model.ParseServiceKey(service)
	if err != nil {
		return status.Service{}, err
	}
	s.translator.mu.Lock()
	seq, names := max(s.translator.publishes[key], 1), s.translator.world.Nodes()
	known := s.translator.world.Plan(key) != nil
	s.translator.mu.Unlock()
	if !known {
		return status.Service{}, fmt.Errorf("no Service %s is forwarded: it does not exist, or it is headless, an ExternalName, or for another proxy", key)
	}
	applied := map[string]uint64{}
	for _, n := range s.tracker.Status().Nodes {
		applied[n.Node] = n.Applied
	}
	answer := status.Service{Service: key.String(), Publish: seq, Nodes: []status.ServiceNode{}}
	for _, name := range names {
		at, connected := applied[name]
		answer.Nodes = append(answer.Nodes, status.ServiceNode{Node: name, Connected: connected, Forwards: at >= seq})
	}
	return answer, nil
}
