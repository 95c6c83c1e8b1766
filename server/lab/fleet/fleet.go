// Package fleet runs Fairlead's own programs on a lab: a control plane, and an agent and an Envoy on each node.
//
// In come a lab's hosts and the path of the binary; out go running processes and their status. The processes are those that a
// cluster runs, with the same commands. The package never looks at traffic.
package fleet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/fairlead/fairlead/server/lab"
	"github.com/fairlead/fairlead/server/node"
)

const (
	xdsPort    = 18000
	serveAdmin = "127.0.0.1:19000" // In the control plane's network.
	agentAdmin = "127.0.0.1:19001" // In each node's network.
)

// Config says which programs to run where.
type Config struct {
	Fairlead string      // Path of the fairlead binary.
	Envoy    string      // Path of the Envoy binary.
	Dir      string      // Folder for logs and state, which outlives the fleet.
	Source   []string    // Arguments of fairlead serve that name its source.
	Server   *lab.Host   // Where the control plane runs: a host of its own, which nodes can reach.
	Nodes    []*lab.Node // Each with a Node object of its name.
	Agent    []string    // Further arguments of fairlead agent.
}

// Fleet is the running programs. Its methods are called from one goroutine.
type Fleet struct {
	config Config
	serve  *lab.Process
	nodes  map[string]*programs
}

// programs are those of one node.
type programs struct {
	*lab.Node
	agent   *lab.Process
	proxies []*lab.Process // Those not stopped, in order of their start.
	started int
}

// Start starts all programs at once: each of them waits for those that it needs. Also with an error it returns the fleet, so
// that the caller can stop what runs.
func Start(c Config) (*Fleet, error) {
	f := &Fleet{config: c, nodes: map[string]*programs{}}
	errs := []error{f.StartServe()}
	for _, n := range c.Nodes {
		f.nodes[n.Name] = &programs{Node: n}
		_, err := f.StartProxy(n.Name)
		errs = append(errs, f.StartAgent(n.Name), err)
	}
	return f, errors.Join(errs...)
}

// StartServe starts the control plane, or starts it again.
func (f *Fleet) StartServe() (err error) {
	f.serve, err = f.run(f.config.Server, "serve", "serve",
		append(slices.Clone(f.config.Source), "--listen", f.address(), "--admin", serveAdmin, "--insecure")...)
	return err
}

// StartAgent starts a node's agent, or starts it again with the state that it left.
func (f *Fleet) StartAgent(name string) (err error) {
	n := f.nodes[name]
	n.agent, err = f.run(n.Host, "agent-"+name, "agent", append([]string{"--node", name, "--server", f.address(), "--insecure",
		"--state-dir", f.StateDir(name), "--run-dir", f.RunDir(name), "--admin", agentAdmin}, f.config.Agent...)...)
	return err
}

// StartProxy starts a node's Envoy, or another beside it, which then takes over.
func (f *Fleet) StartProxy(name string) (*lab.Process, error) {
	n := f.nodes[name]
	n.started++
	p, err := f.run(n.Host, fmt.Sprintf("proxy-%s-%d", name, n.started), "proxy", "--run-dir", f.RunDir(name), "--envoy", f.config.Envoy)
	if err == nil {
		n.proxies = append(n.proxies, p)
	}
	return p, err
}

func (f *Fleet) run(in *lab.Host, name, subcommand string, args ...string) (*lab.Process, error) {
	return in.Run("fairlead "+subcommand, filepath.Join(f.config.Dir, name+".log"), exec.Command(f.config.Fairlead, append([]string{subcommand}, args...)...))
}

func (f *Fleet) address() string {
	return netip.AddrPortFrom(f.config.Server.IPv4, xdsPort).String()
}

// RunDir returns the folder of a node's sockets. It is short, since a unix socket's path has at most 107 bytes, and of
// this world alone, since /run is.
func (f *Fleet) RunDir(name string) string { return filepath.Join("/run/fairlead", name) }

// StateDir returns the folder of a node's last good state.
func (f *Fleet) StateDir(name string) string { return filepath.Join(f.config.Dir, name) }

// Serve returns the control plane's process.
func (f *Fleet) Serve() *lab.Process { return f.serve }

// Agent returns the process of a node's agent.
func (f *Fleet) Agent(name string) *lab.Process { return f.nodes[name].agent }

// Proxies returns a node's Envoys that have not been stopped by StopProxy, the oldest first.
func (f *Fleet) Proxies(name string) []*lab.Process { return slices.Clone(f.nodes[name].proxies) }

// StopProxy stops one of a node's Envoys.
func (f *Fleet) StopProxy(name string, p *lab.Process) {
	p.Stop()
	n := f.nodes[name]
	n.proxies = slices.DeleteFunc(n.proxies, func(o *lab.Process) bool { return o == p })
}

// Status returns the status of a node's agent.
func (f *Fleet) Status(ctx context.Context, name string) (node.Status, error) {
	var s node.Status
	client := &http.Client{Transport: &http.Transport{DialContext: f.nodes[name].DialContext, DisableKeepAlives: true}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+agentAdmin+"/debug/status", nil)
	if err != nil {
		return s, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return s, fmt.Errorf("ask the agent of %s: %w", name, err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&s); err != nil {
		return s, fmt.Errorf("answer of the agent of %s, status %s: %w", name, resp.Status, err)
	}
	return s, nil
}

// pollInterval is how often Await polls. It is small beside what it waits for.
const pollInterval = 10 * time.Millisecond

// Await polls the status of a node's agent until the condition holds, and returns it. If the context ends first, or a program
// has ended, the error has the last status.
func (f *Fleet) Await(ctx context.Context, name string, condition func(node.Status) bool) (node.Status, error) {
	poll := time.NewTicker(pollInterval)
	defer poll.Stop()
	for {
		s, err := f.Status(ctx, name)
		if err == nil && condition(s) {
			return s, nil
		}
		if ended := f.Check(); ended != nil {
			return s, ended
		}
		select {
		case <-ctx.Done():
			return s, errors.Join(ctx.Err(), err, fmt.Errorf("agent of %s: %+v", name, s))
		case <-poll.C:
		}
	}
}

// Ready is a condition for Await: the node has what the control plane sent, and an Envoy that forwards.
func Ready(s node.Status) bool { return s.Programmed && s.Current != 0 }

// Check returns an error when a program has ended that nobody stopped.
func (f *Fleet) Check() error {
	var errs []error
	for _, p := range f.processes() {
		errs = append(errs, p.Ended())
	}
	return errors.Join(errs...)
}

// processes returns all that should run.
func (f *Fleet) processes() []*lab.Process {
	var all []*lab.Process
	if f.serve != nil {
		all = append(all, f.serve)
	}
	for _, n := range f.nodes {
		all = append(all, n.proxies...)
		if n.agent != nil {
			all = append(all, n.agent)
		}
	}
	return all
}

// Stop ends all programs, at once: none of them needs another to end.
func (f *Fleet) Stop() {
	var stopping sync.WaitGroup
	for _, p := range f.processes() {
		stopping.Go(p.Stop)
	}
	stopping.Wait()
}

// FindEnvoy returns the Envoy binary to run: $ENVOY, else the PATH's, else the one that `make setup` puts into the
// checkout.
func FindEnvoy(checkout string) (string, error) {
	for _, candidate := range []string{os.Getenv("ENVOY"), "envoy", filepath.Join(checkout, ".cache/envoy/envoy")} {
		if candidate == "" {
			continue
		}
		if path, err := exec.LookPath(candidate); err == nil {
			return filepath.Abs(path)
		}
	}
	return "", errors.New("no Envoy in $ENVOY, the PATH or .cache/envoy: run make setup in the checkout")
}
