package node

import (
	"errors"
	"fmt"
	"log/slog"

	"github.com/fairlead/fairlead/server/node/dataplane"
	"github.com/fairlead/fairlead/server/node/splice"
	"github.com/fairlead/fairlead/translate/envoy"
	"github.com/fairlead/fairlead/translate/frontendpb"
	"github.com/fairlead/fairlead/translate/model"
)

// spliceState is the splice of the node's pods, where it is on and the kernel has it. Whatever fails leaves packets to the host's
// hooks, so no error of it stops a change. The reconciler owns it.
type spliceState struct {
	*splice.Splice               // Nil: off, or the kernel refuses it.
	links          []splice.Link // Those of pods, which are spliced.
	err            error         // Why some connections of pods are not spliced that should be.
}

// open starts the splice, or removes what an earlier agent has left of it.
func (s *spliceState) open(config Config, log *slog.Logger) {
	if !config.Splice {
		if err := splice.Remove(); err != nil {
			log.Error("cannot remove an earlier agent's splice", "error", err)
		}
		return
	}
	var err error
	if len(config.PodCIDRs)+len(config.PodInterfaces) > 0 {
		err = errors.Join(errors.New("--pod-cidr and --pod-interface say which packets are pods', so the links to pods are not known"), splice.Remove())
	} else {
		s.Splice, err = splice.Open(config.EnvoyNS)
	}
	s.note(err, log)
}

// note keeps an error for the node's status, and logs a new one.
func (s *spliceState) note(err error, log *slog.Logger) {
	if err != nil && (s.err == nil || s.err.Error() != err.Error()) {
		log.Warn("pods' connections are not all spliced", "error", err)
	}
	if err == nil && s.err != nil {
		log.Info("pods' connections are spliced again")
	}
	s.err = err
}

func (s *spliceState) setFrontend(name string, f *frontendpb.Frontend) {
	if s.Splice != nil {
		s.SetFrontend(name, f)
	}
}

// inspect has the next commit look whether the programs are still there.
func (s *spliceState) inspect() {
	if s.Splice != nil {
		s.Inspect()
	}
}

// commit programs the splice, once the host's table has the same frontends.
func (s *spliceState) commit(instances dataplane.Instances, aliases []envoy.Alias, log *slog.Logger) {
	if s.Splice != nil {
		s.note(s.Commit(instances, aliases, s.links), log)
	}
}

// problem returns what does not hold on a node that cannot splice, or nil.
func (s *spliceState) problem(node string) *model.Problem {
	if s.err == nil {
		return nil
	}
	return &model.Problem{
		Object: "Node " + node, Reason: model.NotSpliced,
		Message: fmt.Sprintf("connections of pods to Services take the host's hooks (%v): egress policies see the Service's address, and those that go by the pod's link"+
			" do not see the endpoint; to accept that, run the agent with --splice=false", s.err),
	}
}
