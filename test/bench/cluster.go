package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/fairlead/fairlead/server/lab"
	"github.com/fairlead/fairlead/server/lab/fleet"
)

// A cluster is two nodes with a client on each and two backends on the second: what the first client asks for is on the
// other node, whichever backend is chosen.
type cluster struct {
	nodes    []*lab.Node
	clients  []*lab.Host // One on each node.
	backends []*lab.Host // They answer with their names.
}

// addCluster adds a cluster to a lab; the names of its hosts start with prefix.
func addCluster(l *lab.Lab, prefix string) (*cluster, error) {
	c := &cluster{}
	for i := 1; i <= 2; i++ {
		node, err := l.AddNode(fmt.Sprintf("%s-n%d", prefix, i), lab.Routed)
		if err != nil {
			return nil, err
		}
		client, err := node.AddPod(fmt.Sprintf("%s-client%d", prefix, i), 0)
		if err != nil {
			return nil, err
		}
		c.nodes, c.clients = append(c.nodes, node), append(c.clients, client)
	}
	for i := 1; i <= 2; i++ {
		backend, err := c.nodes[1].AddPod(fmt.Sprintf("%s-backend%d", prefix, i), 0)
		if err != nil {
			return nil, err
		}
		_, errTCP := backend.ServeTCP(backend.Name, backendPort)
		_, errUDP := backend.ServeUDP(backend.Name, backendPort)
		if err := errors.Join(errTCP, errUDP); err != nil {
			return nil, err
		}
		c.backends = append(c.backends, backend)
	}
	return c, nil
}

// addresses returns where the backends serve.
func (c *cluster) addresses() []netip.AddrPort {
	var all []netip.AddrPort
	for _, b := range c.backends {
		all = append(all, netip.AddrPortFrom(b.IPv4, backendPort))
	}
	return all
}

// endpoints returns the backends as endpoints of a Service.
func (c *cluster) endpoints() []endpoint {
	var all []endpoint
	for _, b := range c.backends {
		all = append(all, endpoint{b.IPv4, c.nodes[1].Name})
	}
	return all
}

// bench is what all measurements share.
type bench struct {
	fairlead, envoy string // Paths of the binaries.
}

// inLab runs f with a lab of its own and a folder, which is kept when f fails, for the logs in it.
func (b *bench) inLab(name string, f func(l *lab.Lab, dir string) error) (err error) {
	dir, err := os.MkdirTemp("", "fairlead-bench-"+name+"-")
	if err != nil {
		return err
	}
	l, err := lab.New()
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, l.Close())
		if err == nil {
			err = os.RemoveAll(dir)
		} else {
			err = fmt.Errorf("%s: %w (logs are in %s)", name, err, dir)
		}
	}()
	return f(l, dir)
}

// start writes the manifests and starts Fairlead on some nodes of a lab. What it returns runs also with an error, so that
// it can be stopped.
func (b *bench) start(l *lab.Lab, dir string, nodes []*lab.Node, services []service) (*fleet.Fleet, error) {
	server, err := l.AddOutside("control-plane")
	if err != nil {
		return nil, err
	}
	if err := writeManifests(manifests(dir), nodes, services); err != nil {
		return nil, err
	}
	return fleet.Start(fleet.Config{
		Fairlead: b.fairlead, Envoy: b.envoy, Dir: dir,
		Source: []string{"--source", "directory", "--directory", manifests(dir)},
		Server: server, Nodes: nodes,
	})
}

// manifests returns the folder of the manifests within that of a measurement.
func manifests(dir string) string { return filepath.Join(dir, "manifests") }

// ready waits until every node forwards all that the control plane serves.
func ready(f *fleet.Fleet, nodes []*lab.Node) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, n := range nodes {
		if _, err := f.Await(ctx, n.Name, fleet.Ready); err != nil {
			return err
		}
	}
	return nil
}
