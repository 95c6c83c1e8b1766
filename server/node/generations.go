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
)

// generations knows the node's Envoys. It belongs to the owner.
type generations struct {
	config  Config
	log     *slog.Logger
	live    []envoyns.ID // Whose links are there, in order.
	current envoyns.ID   // 0: none.
	last    envoyns.ID   // The number given out last.
}

// applied is cache.Cache.Applied.
type applied func(node, typeURL string) uint64

func newGenerations(config Config, log *slog.Logger) *generations {
	return &generations{config: config, log: log}
}

// Bootstrap returns what a generation's Envoy is started with.
func Bootstrap(node, runDir string, id envoyns.ID) envoy.Bootstrap {
	return envoy.Bootstrap{Node: envoyID(node, id), Generation: int(id), XDSSocket: XDSSocket(runDir), AdminSocket: AdminSocket(runDir, id)}
}

// envoyID returns the node id under which a generation's Envoy asks for its resources.
func envoyID(node string, id envoyns.ID) string { return node + "/" + strconv.Itoa(int(id)) }

// adopt finds the Envoys that an earlier agent left running. The current one goes on being it: the kernel leads to it.
func (g *generations) adopt() error {
	live, err := envoyns.Existing()
	if err != nil {
		return err
	}
	g.live = live
	content, err := os.ReadFile(generationPath(g.config.StateDir))
	if err != nil {
		return nil // A first start, or nothing to remember.
	}
	id, err := strconv.Atoi(strings.TrimSpace(string(content)))
	if err == nil && slices.Contains(live, envoyns.ID(id)) {
		g.last = envoyns.ID(id)
		g.makeCurrent(g.last)
	}
	return nil
}

// join joins the namespace of a new Envoy to the node and returns its number.
func (g *generations) join(ns int, addresses []netip.Addr) (envoyns.ID, error) {
	g.inspect()
	id := g.free()
	if id == 0 {
		return 0, fmt.Errorf("%d Envoys are still running on this node; wait for one to drain or stop one", len(g.live))
	}
	if err := envoyns.Build(g.config.Generation, id, ns, envoyns.MTU(addresses)); err != nil {
		return 0, err
	}
	g.last = id
	g.live = append(g.live, id)
	slices.Sort(g.live)
	g.log.Info("an Envoy starts", "generation", id)
	return id, nil
}

// leave undoes join for an Envoy that will never start.
func (g *generations) leave(id envoyns.ID) {
	if err := envoyns.Remove(g.config.Generation, id); err != nil {
		g.log.Error("cannot remove what was built for an Envoy that did not start", "generation", id, "error", err)
	}
	g.live = slices.DeleteFunc(g.live, func(l envoyns.ID) bool { return l == id })
}

// free returns a number that no living Envoy has, or 0.
func (g *generations) free() envoyns.ID {
	for i := range envoyns.MaxID {
		if id := (g.last+i)%envoyns.MaxID + 1; !slices.Contains(g.live, id) {
			return id
		}
	}
	return 0
}

// inspect finds the Envoys that have died, and removes what is left of them.
func (g *generations) inspect() {
	live, err := envoyns.Existing()
	if err != nil {
		g.log.Error("cannot see which Envoys are alive", "error", err)
		return
	}
	for _, id := range g.live {
		if slices.Contains(live, id) {
			continue
		}
		g.log.Info("an Envoy is gone", "generation", id, "current", id == g.current)
		if err := envoyns.Remove(g.config.Generation, id); err != nil {
			g.log.Error("cannot remove what is left of an Envoy", "generation", id, "error", err)
		}
		if id == g.current {
			g.current = 0
		}
	}
	g.live = slices.DeleteFunc(g.live, func(id envoyns.ID) bool { return !slices.Contains(live, id) })
}

// repair puts back what someone removed of the living Envoys' links.
func (g *generations) repair() {
	for _, id := range g.live {
		if err := envoyns.Repair(g.config.Generation, id); err != nil {
			g.log.Error("cannot repair a generation", "generation", id, "error", err)
		}
	}
}

// has reports whether a generation's Envoy has everything up to seq.
func (g *generations) has(id envoyns.ID, seq uint64, applied applied) bool {
	for _, typeURL := range []string{envoy.ClusterType, envoy.AssignmentType, envoy.ListenerType} {
		if applied(envoyID(g.config.Node, id), typeURL) < seq {
			// An Envoy without a single cluster never asks for assignments.
			if typeURL != envoy.AssignmentType || applied(envoyID(g.config.Node, id), typeURL) != 0 {
				return false
			}
		}
	}
	return true
}

// candidate returns the newest Envoy if it is not the current one, or 0. Numbers are given out in turn, so the newest is the
// first that lives going back from the last. That the very last has died must not keep the one before it waiting.
func (g *generations) candidate() envoyns.ID {
	age := func(id envoyns.ID) envoyns.ID { return (g.last - id + envoyns.MaxID) % envoyns.MaxID }
	if len(g.live) == 0 {
		return 0
	}
	newest := slices.MinFunc(g.live, func(a, b envoyns.ID) int { return cmp.Compare(age(a), age(b)) })
	if newest == g.current {
		return 0
	}
	return newest
}

// promote makes a new Envoy the current one as soon as it has its resources and takes connections of every class.
func (g *generations) promote(applied applied) {
	id := g.candidate()
	if id == 0 || !g.has(id, 1, applied) {
		return
	}
	if err := takesConnections(id); err != nil {
		g.log.Debug("a new Envoy does not take connections yet", "generation", id, "error", err)
		return
	}
	g.makeCurrent(id)
}

// makeCurrent leads new connections to a generation.
func (g *generations) makeCurrent(id envoyns.ID) {
	g.current = id
	g.log.Info("new connections go to an Envoy", "generation", id)
	if err := os.WriteFile(generationPath(g.config.StateDir), []byte(strconv.Itoa(int(id))), 0o600); err != nil {
		g.log.Error("cannot remember the current Envoy for the next start", "error", err)
	}
}

// retry returns a channel that fires when a new Envoy is worth another try: it has its resources, but its workers do not
// listen yet, of which nothing tells.
func (g *generations) retry(applied applied) <-chan time.Time {
	if id := g.candidate(); id != 0 && g.has(id, 1, applied) {
		return time.After(warmth)
	}
	return nil
}

// takesConnections dials the listener of every class on the way that Service traffic takes.
func takesConnections(id envoyns.ID) error {
	for _, class := range envoyns.Classes {
		for _, probe := range envoyns.ProbeAddresses(id, class) {
			conn, err := net.DialTimeout("tcp", probe.String(), warmth)
			if err != nil {
				return fmt.Errorf("class %s: %w", envoyns.ClassName(class), err)
			}
			conn.Close()
		}
	}
	return nil
}

// kernel returns what the kernel's table needs to know.
func (g *generations) kernel() dataplane.Generations {
	return dataplane.Generations{Live: slices.Clone(g.live), Current: g.current}
}
