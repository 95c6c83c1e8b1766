package e2e

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/fairlead/fairlead/server/lab"
)

const (
	xdsPort   = 15010
	adminPort = 15014
)

// fairlead is the programs under test: the control plane beside the API server, and an agent and an Envoy on each node.
type fairlead struct {
	cluster    *cluster
	kubeconfig string
	envoy      string

	serve   *process
	agents  map[string]*process // By node.
	proxies map[string]*process
}

// startFairlead gives the control plane a service account that may read what it needs, and no more, and starts all.
func (c *cluster) startFairlead(ctx context.Context) error {
	f := &fairlead{cluster: c, kubeconfig: filepath.Join(c.dir, "fairlead.kubeconfig"), agents: map[string]*process{}, proxies: map[string]*process{}}
	c.fairlead = f
	var err error
	if f.envoy, err = c.envoy(); err != nil {
		return err
	}
	manifest, err := os.ReadFile(filepath.Join("testdata", "fairlead.yaml"))
	if err != nil {
		return err
	}
	if _, err := c.kube.kubectl(string(manifest), "apply", "-f", "-"); err != nil {
		return err
	}
	if err := c.kube.serviceAccountConfig(ctx, f.kubeconfig, "fairlead", c.kube.address()); err != nil {
		return err
	}
	if err := f.startServe(); err != nil {
		return err
	}
	for _, n := range c.nodes {
		if err := errors.Join(f.startAgent(n), f.startProxy(n)); err != nil {
			return err
		}
	}
	return nil
}

// startServe starts the control plane, or starts it again.
func (f *fairlead) startServe() (err error) {
	f.serve, err = f.cluster.run(f.cluster.kube.host, "fairlead-serve", exec.Command(f.cluster.binary("fairlead"), "serve",
		"--source", "kubernetes", "--kubeconfig", f.kubeconfig,
		"--listen", f.address(xdsPort), "--admin", f.address(adminPort), "--insecure"))
	return err
}

func (f *fairlead) address(port uint16) string {
	return netip.AddrPortFrom(f.cluster.kube.host.IPv4, port).String()
}

// startAgent starts a node's agent, or starts it again with the state that it left.
func (f *fairlead) startAgent(n *lab.Node) (err error) {
	f.agents[n.Name], err = f.cluster.run(n.Host, "fairlead-agent-"+n.Name, exec.Command(f.cluster.binary("fairlead"), "agent",
		"--node", n.Name, "--server", f.address(xdsPort),
		"--state-dir", filepath.Join(f.cluster.dir, n.Name), "--run-dir", f.runDir(n)))
	return err
}

// startProxy starts a node's Envoy, or another one.
func (f *fairlead) startProxy(n *lab.Node) (err error) {
	f.proxies[n.Name], err = f.cluster.run(n.Host, "fairlead-proxy-"+n.Name, exec.Command(f.cluster.binary("fairlead"), "proxy",
		"--run-dir", f.runDir(n), "--envoy", f.envoy))
	return err
}

// runDir is short, since a unix socket's path has at most 107 bytes, and private, since the tests' /run is.
func (f *fairlead) runDir(n *lab.Node) string { return filepath.Join("/run/fairlead", n.Name) }

// stop ends the nodes' programs, then the control plane.
func (f *fairlead) stop() {
	for _, n := range f.cluster.nodes {
		for _, p := range []*process{f.proxies[n.Name], f.agents[n.Name]} {
			if p != nil {
				p.stop()
			}
		}
	}
	if f.serve != nil {
		f.serve.stop()
	}
}
