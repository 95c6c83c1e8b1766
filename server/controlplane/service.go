package controlplane

import (
	"cmp"
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
	now.Version = s.cfg.Version
	if err := s.notReady(); err != nil {
		now.Reason = err.Error()
	} else {
		now.Ready = true
	}
	return now
}

// Agents returns the states of the nodes whose agents are connected to this replica. It is safe for concurrent use.
func (s *Server) Agents() map[string]status.State {
	agents := map[string]status.State{}
	for _, n := range s.tracker.Nodes() {
		if n.Connected {
			agents[n.Node] = n.State
		}
	}
	return agents
}

// ServiceStatus says which nodes forward the newest change of a Service that this replica has seen. It is safe for concurrent
// use.
func (s *Server) ServiceStatus(service string) (status.Service, error) {
	key, err := model.ParseServiceKey(service)
	if err != nil {
		return status.Service{}, err
	}
	s.translator.mu.Lock()
	seq := max(s.translator.publishes[key], 1)
	known, versions := s.translator.world.Plan(key) != nil, s.translator.world.Versions(key)
	s.translator.mu.Unlock()
	if !known {
		return status.Service{}, fmt.Errorf("no Service %s is forwarded: it does not exist, or it is headless, an ExternalName, or for another proxy", key)
	}
	answer := status.Service{Service: key.String(), Publish: seq, Nodes: []status.ServiceNode{}, Versions: versions}
	for _, n := range s.tracker.Status().Nodes {
		at := status.ServiceNode{Node: n.Node, Connected: n.Connected, Reason: n.Reason}
		switch {
		case !n.Connected || n.State == status.NotReady:
		case n.Applied < seq:
			at.Reason = cmp.Or(n.Reason, "the node has yet to apply it")
		default:
			at.Forwards, at.Reason = true, ""
		}
		answer.Nodes = append(answer.Nodes, at)
	}
	return answer, nil
}
