package clients

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"

	"github.com/fairlead/fairlead/server/lab"
	"github.com/fairlead/fairlead/server/lab/fleet"
	"github.com/fairlead/fairlead/test/clients/backend"
)

// cluster is two nodes, each in a zone of its own, and a control plane that reads a folder of manifests.
type cluster struct {
	t       *testing.T
	dir     string
	binary  string
	nodes   [2]*lab.Node
	client  *lab.Host // A pod on the first node.
	control *lab.Host // The second node: the control plane is in its network, so that pods can reach it.
	fleet   *fleet.Fleet
}

// zones are those of the nodes.
var zones = [2]string{"zone-a", "zone-b"}

// startCluster starts a cluster. With proxy, cluster IPs can be dialled from the first node and its pods.
func startCluster(t *testing.T, proxy bool) *cluster {
	t.Helper()
	c := &cluster{t: t, dir: t.TempDir(), binary: os.Getenv(preparedVariable)}
	l, err := lab.New()
	must(t, err)
	t.Cleanup(func() { must(t, l.Close()) })
	must(t, os.Mkdir(c.manifests(), 0o755))
	for i := range c.nodes {
		c.nodes[i], err = l.AddNode(fmt.Sprintf("n%d", i+1), lab.Routed)
		must(t, err)
		c.write(c.nodes[i].Name, fmt.Sprintf(nodeManifest, c.nodes[i].Name, zones[i], c.nodes[i].PodCIDR4, c.nodes[i].IPv4))
	}
	c.client, err = c.nodes[0].AddPod("client", 0)
	must(t, err)
	c.control = c.nodes[1].Host
	config := fleet.Config{
		Fairlead: c.binary, Dir: c.dir, Server: c.control,
		Source: []string{"--source", "directory", "--directory", c.manifests()},
	}
	if proxy {
		config.Nodes = c.nodes[:1]
		config.Envoy, err = fleet.FindEnvoy("../..")
		must(t, err)
	}
	c.fleet, err = fleet.Start(config)
	must(t, err)
	t.Cleanup(func() {
		if err := c.fleet.Check(); err != nil {
			t.Errorf("%v\n%s", err, logOf(c.fleet.Serve().Log))
		}
		c.fleet.Stop()
		if t.Failed() {
			t.Logf("the control plane's log:\n%s", logOf(c.fleet.Serve().Log))
		}
	})
	c.awaitServer(t, c.address(18000))
	return c
}

// awaitServer waits until clients can connect to an address.
func (c *cluster) awaitServer(t *testing.T, address string) {
	t.Helper()
	within(t, "the control plane listens on "+address, func() bool {
		conn, err := c.client.DialContext(t.Context(), "tcp", address)
		if err != nil {
			return false
		}
		must(t, conn.Close())
		return true
	})
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (c *cluster) manifests() string { return filepath.Join(c.dir, "manifests") }

// write replaces a manifest at once, so that a reader sees the old or the new content.
func (c *cluster) write(name, manifest string) {
	c.t.Helper()
	temporary := filepath.Join(c.manifests(), "."+name)
	must(c.t, os.WriteFile(temporary, []byte(manifest), 0o644))
	must(c.t, os.Rename(temporary, filepath.Join(c.manifests(), name+".yaml")))
}

// remove removes a manifest.
func (c *cluster) remove(name string) {
	c.t.Helper()
	must(c.t, os.Remove(filepath.Join(c.manifests(), name+".yaml")))
}

// address returns the address of a port in the control plane's network.
func (c *cluster) address(port uint16) string {
	return netip.AddrPortFrom(c.control.IPv4, port).String()
}

// bootstrap writes the bootstrap of a program in the client's pod, with the command that people use, and returns its path.
func (c *cluster) bootstrap(t *testing.T, id string, flags ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "bootstrap.json")
	cmd := exec.Command(c.binary, append([]string{"bootstrap", "grpc", "--file", path, "--id", "default/" + id, "--node", c.nodes[0].Name}, flags...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, out)
	}
	return path
}

// service is a Service of the cluster and the pods behind it.
type service struct {
	cluster *cluster
	t       *testing.T
	name    string
	address string // The cluster IP; no client connects to it.
	hints   bool   // Whether each endpoint is hinted to the zone that it is in.
	pods    []*pod
}

// pod is a backend and what its EndpointSlice says of it.
type pod struct {
	*lab.Host
	node        int
	server      *grpc.Server
	terminating bool
}

const port = 8080

// addPod adds a pod that serves to a node. Its endpoint is ready with the next write.
func (s *service) addPod(node int) *pod {
	s.t.Helper()
	host, err := s.cluster.nodes[node].AddPod(fmt.Sprintf("%s-%d", s.name, len(s.pods)+1), 0)
	must(s.t, err)
	p := &pod{Host: host, node: node, server: backend.New(host.Name)}
	listener, err := host.Listen("tcp", fmt.Sprintf(":%d", port))
	must(s.t, err)
	served := make(chan error, 1)
	go func() { served <- p.server.Serve(listener) }()
	s.t.Cleanup(func() {
		p.server.Stop()
		if err := <-served; err != nil && !errors.Is(err, net.ErrClosed) && !errors.Is(err, grpc.ErrServerStopped) {
			s.t.Errorf("%s: %v", p.Name, err)
		}
		must(s.t, host.Delete())
	})
	s.pods = append(s.pods, p)
	return p
}

// names returns the names of the pods that are not terminating.
func (s *service) names() []string {
	var names []string
	for _, p := range s.pods {
		if !p.terminating {
			names = append(names, p.Name)
		}
	}
	return names
}

// write publishes the Service and its endpoints as they are.
func (s *service) write() {
	s.t.Helper()
	var m strings.Builder
	fmt.Fprintf(&m, serviceManifest, s.name, s.address, port)
	for _, p := range s.pods {
		fmt.Fprintf(&m, endpointManifest, p.IPv4, s.cluster.nodes[p.node].Name, zones[p.node], !p.terminating, p.terminating)
		if s.hints {
			fmt.Fprintf(&m, hintManifest, zones[p.node])
		}
	}
	s.cluster.write(s.name, m.String())
}

// terminate does what happens when a pod is deleted: its EndpointSlice says so and the program is told to stop, in no
// particular order, and the program finishes the calls under way.
func (s *service) terminate(ctx context.Context, p *pod) (gone <-chan error) {
	p.terminating = true
	s.write()
	stopped := make(chan error, 1)
	go func() {
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			p.server.GracefulStop()
		}()
		select {
		case <-ended:
			stopped <- nil
		case <-ctx.Done():
			stopped <- fmt.Errorf("%s does not stop: %w", p.Name, ctx.Err())
		}
	}()
	return stopped
}

const (
	nodeManifest = `apiVersion: v1
kind: Node
metadata:
  name: %s
  labels:
    topology.kubernetes.io/zone: %s
spec:
  podCIDRs: [%s]
status:
  addresses:
  - {type: InternalIP, address: %s}
`
	serviceManifest = `apiVersion: v1
kind: Service
metadata:
  name: %[1]s
  namespace: default
spec:
  clusterIPs: [%[2]s]
  ports:
  - name: grpc
    port: 80
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: %[1]s
  namespace: default
  labels:
    kubernetes.io/service-name: %[1]s
addressType: IPv4
ports:
- name: grpc
  port: %[3]d
endpoints:
`
	endpointManifest = `- addresses: [%s]
  nodeName: %s
  zone: %s
  conditions: {ready: %t, serving: true, terminating: %t}
`
	hintManifest = `  hints: {forZones: [{name: %s}]}
`
)
