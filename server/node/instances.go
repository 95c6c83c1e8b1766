package node

import (
	"cmp"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/fairlead/fairlead/server/node/dataplane"
	"github.com/fairlead/fairlead/server/node/envoyns"
	"github.com/fairlead/fairlead/translate/envoy"
	"github.com/fairlead/fairlead/translate/frontendpb"
)

// instances are the node's Envoys. It belongs to the reconciler.
type instances struct {
	config  Config
	log     *slog.Logger
	live    []envoyns.ID // Whose links are there, in order.
	current envoyns.ID   // 0: none.
	last    envoyns.ID   // The number given out last.
}

// applied is cache.Cache.Applied.
type applied func(node, typeURL string) uint64

func newInstances(config Config, log *slog.Logger) *instances {
	return &instances{config: config, log: log}
}

// Bootstrap returns what an Envoy instance is started with.
func Bootstrap(node, runDir string, id envoyns.ID) envoy.Bootstrap {
	return envoy.Bootstrap{Node: envoyID(node, id), Instance: int(id), XDSSocket: XDSSocket(runDir), AdminSocket: AdminSocket(runDir, id)}
}

// envoyID returns the node id under which an Envoy instance asks for its resources.
func envoyID(node string, id envoyns.ID) string { return node + "/" + strconv.Itoa(int(id)) }

// adopt finds the Envoys that an earlier agent left running. The current one goes on being it: the kernel leads to it.
func (i *instances) adopt() error {
	live, err := envoyns.Existing()
	if err != nil {
		return err
	}
	i.live = live
	content, err := os.ReadFile(instancePath(i.config.StateDir))
	if err != nil {
		return nil // A first start, or nothing to remember.
	}
	id, err := strconv.Atoi(strings.TrimSpace(string(content)))
	if err == nil && slices.Contains(live, envoyns.ID(id)) {
		i.last = envoyns.ID(id)
		i.makeCurrent(i.last)
	}
	return nil
}

// start joins the namespace of a new Envoy to the node and returns its number.
func (i *instances) start(ns int, addresses []netip.Addr) (envoyns.ID, error) {
	i.removeDead()
	id := i.free()
	if id == 0 {
		return 0, fmt.Errorf("%d Envoys are still running on this node; wait for one to drain or stop one", len(i.live))
	}
	if err := envoyns.Build(i.config.EnvoyNS, id, ns, envoyns.MTU(addresses)); err != nil {
		return 0, err
	}
	i.last = id
	i.live = append(i.live, id)
	slices.Sort(i.live)
	i.log.Info("an Envoy starts", "generation", id)
	return id, nil
}

// abort undoes start for an Envoy that will never start.
func (i *instances) abort(id envoyns.ID) {
	if err := envoyns.Remove(i.config.EnvoyNS, id); err != nil {
		i.log.Error("cannot remove what was built for an Envoy that did not start", "generation", id, "error", err)
	}
	i.live = slices.DeleteFunc(i.live, func(l envoyns.ID) bool { return l == id })
}

// free returns a number that no living Envoy has, or 0.
func (i *instances) free() envoyns.ID {
	for n := range envoyns.MaxID {
		if id := (i.last+n)%envoyns.MaxID + 1; !slices.Contains(i.live, id) {
			return id
		}
	}
	return 0
}

// removeDead finds the Envoys that have died, and removes what is left of them.
func (i *instances) removeDead() {
	live, err := envoyns.Existing()
	if err != nil {
		i.log.Error("cannot see which Envoys are alive", "error", err)
		return
	}
	for _, id := range i.live {
		if slices.Contains(live, id) {
			continue
		}
		i.log.Info("an Envoy is gone", "generation", id, "current", id == i.current)
		if err := envoyns.Remove(i.config.EnvoyNS, id); err != nil {
			i.log.Error("cannot remove what is left of an Envoy", "generation", id, "error", err)
		}
		if id == i.current {
			i.current = 0
		}
	}
	i.live = slices.DeleteFunc(i.live, func(id envoyns.ID) bool { return !slices.Contains(live, id) })
}

// repair puts back what someone removed of the living Envoys' links.
func (i *instances) repair() {
	for _, id := range i.live {
		if err := envoyns.Repair(i.config.EnvoyNS, id); err != nil {
			i.log.Error("cannot repair a generation", "generation", id, "error", err)
		}
	}
}

// hasResources reports whether an Envoy instance has everything up to seq.
func (i *instances) hasResources(id envoyns.ID, seq uint64, applied applied) bool {
	for _, typeURL := range []string{envoy.ClusterType, envoy.AssignmentType, envoy.ListenerType} {
		if applied(envoyID(i.config.Node, id), typeURL) < seq {
			// An Envoy without a single cluster never asks for assignments.
			if typeURL != envoy.AssignmentType || applied(envoyID(i.config.Node, id), typeURL) != 0 {
				return false
			}
		}
	}
	return true
}

// candidate returns the newest Envoy if it is not the current one, or 0. Numbers are given out in turn, so the newest is the
// first that lives going back from the last. That the very last has died must not keep the one before it waiting.
func (i *instances) candidate() envoyns.ID {
	age := func(id envoyns.ID) envoyns.ID { return (i.last - id + envoyns.MaxID) % envoyns.MaxID }
	if len(i.live) == 0 {
		return 0
	}
	newest := slices.MinFunc(i.live, func(a, b envoyns.ID) int { return cmp.Compare(age(a), age(b)) })
	if newest == i.current {
		return 0
	}
	return newest
}

// promote makes a new Envoy the current one as soon as it has its resources and takes connections of every class.
func (i *instances) promote(applied applied) {
	id := i.candidate()
	if id == 0 || !i.hasResources(id, 1, applied) {
		return
	}
	if err := probe(id); err != nil {
		i.log.Debug("a new Envoy does not take connections yet", "generation", id, "error", err)
		return
	}
	i.makeCurrent(id)
}

// makeCurrent has the kernel send new connections to an Envoy instance.
func (i *instances) makeCurrent(id envoyns.ID) {
	i.current = id
	i.log.Info("new connections go to an Envoy", "generation", id)
	if err := os.WriteFile(instancePath(i.config.StateDir), []byte(strconv.Itoa(int(id))), 0o600); err != nil {
		i.log.Error("cannot remember the current Envoy for the next start", "error", err)
	}
}

// probeTimer returns a channel that fires when a new Envoy is worth another try: it has its resources, but its workers do not
// listen yet, of which nothing tells.
func (i *instances) probeTimer(applied applied) <-chan time.Time {
	if id := i.candidate(); id != 0 && i.hasResources(id, 1, applied) {
		return time.After(probeInterval)
	}
	return nil
}

// probe dials the listener of every class on the way that Service traffic takes.
func probe(id envoyns.ID) error {
	for _, class := range frontendpb.Classes {
		for _, probe := range envoyns.ProbeAddresses(id, class) {
			conn, err := net.DialTimeout("tcp", probe.String(), probeInterval)
			if err != nil {
				return fmt.Errorf("class %s: %w", class.Label(), err)
			}
			conn.Close()
		}
	}
	return nil
}

// dataplane returns what the kernel's table needs to know.
func (i *instances) dataplane() dataplane.Instances {
	return dataplane.Instances{Live: slices.Clone(i.live), Current: i.current}
}
