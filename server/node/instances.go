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

// instances are the node's Envoy instances. The reconciler owns them.
type instances struct {
	config  Config
	log     *slog.Logger
	live    []envoyns.ID // Those whose links exist, in order.
	current envoyns.ID   // 0: none.
	last    envoyns.ID   // The number that was assigned last.

	missed map[envoyns.ID]int // How many probes in succession an Envoy has not answered.
}

// applied is cache.Cache.Applied.
type applied func(node, typeURL string) uint64

func newInstances(config Config, log *slog.Logger) *instances {
	return &instances{config: config, log: log, missed: map[envoyns.ID]int{}}
}

// Bootstrap returns the bootstrap configuration of an Envoy instance.
func Bootstrap(node, runDir string, id envoyns.ID) envoy.Bootstrap {
	return envoy.Bootstrap{Node: envoyID(node, id), Instance: int(id), XDSSocket: XDSSocket(runDir), AdminSocket: AdminSocket(runDir, id)}
}

// envoyID returns the node id with which an Envoy instance subscribes to its resources.
func envoyID(node string, id envoyns.ID) string { return node + "/" + strconv.Itoa(int(id)) }

// adopt finds the Envoys that an earlier agent left running. The current one stays current: the kernel sends connections to it.
func (i *instances) adopt() error {
	live, err := envoyns.Existing()
	if err != nil {
		return err
	}
	i.live = live
	content, err := os.ReadFile(instancePath(i.config.StateDir))
	if err != nil {
		return nil // This is the first start, or no Envoy was current.
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
	if err := envoyns.Build(i.config.EnvoyNS, id, ns, envoyns.FindMTU(addresses)); err != nil {
		return 0, err
	}
	i.last = id
	i.live = append(i.live, id)
	slices.Sort(i.live)
	i.log.Info("an Envoy instance starts", "generation", id)
	return id, nil
}

// abort undoes start for an Envoy that does not start.
func (i *instances) abort(id envoyns.ID) {
	if err := envoyns.Remove(i.config.EnvoyNS, id); err != nil {
		i.log.Error("cannot remove what was built for an Envoy that did not start", "generation", id, "error", err)
	}
	i.live = slices.DeleteFunc(i.live, func(l envoyns.ID) bool { return l == id })
}

// free returns a number that no live Envoy has, or 0.
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
		i.log.Info("an Envoy instance has ended", "generation", id, "current", id == i.current)
		if err := envoyns.Remove(i.config.EnvoyNS, id); err != nil {
			i.log.Error("cannot remove the links and routes of an Envoy instance that has ended", "generation", id, "error", err)
		}
		if id == i.current {
			i.current = 0
		}
	}
	i.live = slices.DeleteFunc(i.live, func(id envoyns.ID) bool { return !slices.Contains(live, id) })
}

// repair restores the addresses, routes and rules of the live Envoys' links. It reports whether some were missing.
func (i *instances) repair() (missing bool) {
	for _, id := range i.live {
		restored, err := envoyns.Repair(i.config.EnvoyNS, id)
		if err != nil {
			i.log.Error("cannot repair the routes of an Envoy instance", "generation", id, "error", err)
		}
		if restored {
			missing = true
			i.log.Warn("another program removed addresses, routes or policy rules of an Envoy instance, or set its links down; they are put back", "generation", id)
		}
	}
	return missing
}

// hasResources reports whether an Envoy instance has acknowledged its resources of all types up to publish seq.
func (i *instances) hasResources(id envoyns.ID, seq uint64, applied applied) bool {
	for _, typeURL := range []string{envoy.ClusterType, envoy.AssignmentType, envoy.ListenerType} {
		if applied(envoyID(i.config.Node, id), typeURL) < seq {
			// An Envoy without clusters never subscribes to assignments.
			if typeURL != envoy.AssignmentType || applied(envoyID(i.config.Node, id), typeURL) != 0 {
				return false
			}
		}
	}
	return true
}

// candidate returns the newest live Envoy if it is not the current one, or 0. Numbers are assigned in turn, so the newest is the
// first live one counting back from the last number. If the last Envoy has died or hangs, the one before it is the candidate.
func (i *instances) candidate() envoyns.ID {
	age := func(id envoyns.ID) envoyns.ID { return (i.last - id + envoyns.MaxID) % envoyns.MaxID }
	awake := slices.DeleteFunc(slices.Clone(i.live), i.hangs)
	if len(awake) == 0 {
		return 0
	}
	newest := slices.MinFunc(awake, func(a, b envoyns.ID) int { return cmp.Compare(age(a), age(b)) })
	if newest == i.current {
		return 0
	}
	return newest
}

// promote makes a new Envoy the current one as soon as it has acknowledged its resources and accepts connections of every class.
func (i *instances) promote(applied applied) {
	id := i.candidate()
	if id == 0 || !i.hasResources(id, 1, applied) {
		return
	}
	if err := probe(id); err != nil {
		i.log.Debug("a new Envoy instance does not accept connections yet", "generation", id, "error", err)
		return
	}
	i.makeCurrent(id)
}

// makeCurrent has the next commit send new connections to an Envoy instance.
func (i *instances) makeCurrent(id envoyns.ID) {
	i.current = id
	i.log.Info("the kernel sends new connections to another Envoy instance", "generation", id)
	if err := os.WriteFile(instancePath(i.config.StateDir), []byte(strconv.Itoa(int(id))), 0o600); err != nil {
		i.log.Error("cannot write the number of the current Envoy for the next start", "error", err)
	}
}

// probeTimer returns a channel that fires when a new Envoy is to be probed again: it has acknowledged its resources, but its
// workers may not listen yet, and no event reports when they do.
func (i *instances) probeTimer(applied applied) <-chan time.Time {
	if id := i.candidate(); id != 0 && i.hasResources(id, 1, applied) {
		return time.After(probeInterval)
	}
	return nil
}

// probe dials the listener of every class over the veth that carries its Service traffic.
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

// dataplane returns the instances for the kernel's table.
func (i *instances) dataplane() dataplane.Instances {
	return dataplane.Instances{Live: slices.Clone(i.live), Current: i.current}
}
