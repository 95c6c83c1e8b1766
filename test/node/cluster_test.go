// Package node proves what happens to packets: real Envoys, real nftables and the real programs, on nodes and pods that
// are network namespaces. What a Service should do is stated here by hand, from what Kubernetes documents and kube-proxy
// does; nothing is asked of the code under test but to forward.
//
// Two nodes route to their pods, n1 and n2, and two have them on a bridge, n3 and n4. All tests share them, and leave
// them as they found them.
package node

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"

	"github.com/fairlead/fairlead/server/lab"
	"github.com/fairlead/fairlead/server/lab/fleet"
	"github.com/fairlead/fairlead/server/node"
)

// binaryVariable hands the path of the program under test to the copy of this process that runs the tests. It is built
// outside, where modules can still be downloaded.
const binaryVariable = "FAIRLEAD_NODE_TEST_BINARY"

// spliced runs the agents with the splice, which takes root: without, the kernel refuses it.
var spliced = flag.Bool("splice", false, "splice pods' connections at their links; as root")

// patience bounds every wait for a condition.
const patience = time.Minute

var theCluster *cluster

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	flag.Parse()
	if os.Getenv(binaryVariable) == "" {
		dir, err := os.MkdirTemp("", "fairlead-node-binary-")
		if err != nil {
			return fail(err)
		}
		defer os.RemoveAll(dir)
		binary := filepath.Join(dir, "fairlead")
		if out, err := exec.Command("go", "build", "-o", binary, "../../cmd/fairlead").CombinedOutput(); err != nil {
			return fail(fmt.Errorf("build fairlead: %w\n%s", err, out))
		}
		if err := os.Setenv(binaryVariable, binary); err != nil {
			return fail(err)
		}
	}
	code, err := lab.Isolated(func() int { return runTests(m) })
	if err != nil {
		return fail(err)
	}
	return code
}

func fail(err error) int {
	fmt.Fprintln(os.Stderr, "node tests:", err)
	return 1
}

// runTests starts the cluster, runs the tests on it, and keeps its logs if one fails.
func runTests(m *testing.M) (code int) {
	dir, err := os.MkdirTemp("", "fairlead-node-")
	if err != nil {
		return fail(err)
	}
	defer func() {
		if code != 0 {
			fmt.Fprintln(os.Stderr, "node tests: logs and state are in", dir)
		} else if err := os.RemoveAll(dir); err != nil {
			code = fail(err)
		}
	}()
	theCluster, err = startCluster(dir)
	if theCluster != nil {
		defer func() {
			if err := theCluster.stop(); err != nil {
				code = fail(err)
			}
		}()
	}
	if err != nil {
		return fail(err)
	}
	return m.Run()
}

// cluster is what the tests share.
type cluster struct {
	dir     string
	binary  string // The fairlead binary.
	lab     *lab.Lab
	fleet   *fleet.Fleet
	pairs   []*pair
	nodes   []*lab.Node
	clean   map[string]string // What each node's network was like before Fairlead came, by node.
	markers int               // How many markers there have been.
}

// pair is two nodes with the same kind of pod network: a pod that serves and one that asks on each, and for each a host
// outside the cluster that takes it for its way to the cluster.
type pair struct {
	cni     lab.CNI
	nodes   [2]*lab.Node
	servers [2]*lab.Host
	clients [2]*lab.Host
	outside [2]*lab.Host
}

func (p *pair) String() string { return [...]string{"routed", "bridged"}[p.cni] }

// Ports of the servers. Those of hostNetwork pods are others, since nodes have one set of ports for all.
const (
	podTCP, podUDP   = 9000, 9053
	hostTCP, hostUDP = 9100, 9153
)

func startCluster(dir string) (*cluster, error) {
	envoy, err := fleet.FindEnvoy("../..")
	if err != nil {
		return nil, err
	}
	if _, err := exec.LookPath("nft"); err != nil {
		return nil, errors.New("the nft command is missing: run make setup in the checkout")
	}
	l, err := lab.New()
	if err != nil {
		return nil, err
	}
	c := &cluster{dir: dir, binary: os.Getenv(binaryVariable), lab: l, clean: map[string]string{}}
	for _, cni := range []lab.CNI{lab.Routed, lab.Bridged} {
		if err := c.addPair(cni); err != nil {
			return c, err
		}
	}
	for _, n := range c.nodes {
		if c.clean[n.Name], err = network(n); err != nil {
			return c, err
		}
	}
	server, err := l.AddOutside("control-plane")
	if err != nil {
		return c, err
	}
	if err := errors.Join(c.write("nodes", c.nodeObjects()), c.write("marker", c.nextMarker().objects())); err != nil {
		return c, err
	}
	c.fleet, err = fleet.Start(fleet.Config{
		Fairlead: c.binary, Envoy: envoy, Dir: dir,
		Source: []string{"--source", "directory", "--directory", c.manifests()},
		Server: server, Nodes: c.nodes, Agent: []string{fmt.Sprintf("--splice=%t", *spliced)},
	})
	if err != nil {
		return c, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for _, n := range c.nodes {
		if _, err := c.fleet.Await(ctx, n.Name, fleet.Ready); err != nil {
			return c, err
		}
	}
	return c, nil
}

func (c *cluster) addPair(cni lab.CNI) error {
	p := &pair{cni: cni}
	for i := range p.nodes {
		name := fmt.Sprintf("n%d", len(c.nodes)+1)
		n, err := c.lab.AddNode(name, cni)
		if err != nil {
			return err
		}
		c.nodes, p.nodes[i] = append(c.nodes, n), n
		if err := errors.Join(n.Do(unlimitedICMP), masquerade(n)); err != nil {
			return err
		}
		if p.servers[i], err = n.AddPod("server-"+name, 0); err != nil {
			return err
		}
		if p.clients[i], err = n.AddPod("client-"+name, 0); err != nil {
			return err
		}
		if p.outside[i], err = c.lab.AddOutside("outside-" + name); err != nil {
			return err
		}
		if err := errors.Join(serve(p.servers[i], podTCP, podUDP), serve(n.Host, hostTCP, hostUDP), routeServices(p.outside[i], n)); err != nil {
			return err
		}
	}
	c.pairs = append(c.pairs, p)
	return nil
}

// unlimitedICMP lifts the kernel's limit of one ICMP error a second to one client, after the first six: the tests expect
// more refusals of datagrams than that.
func unlimitedICMP() error {
	return errors.Join(
		os.WriteFile("/proc/sys/net/ipv4/icmp_ratelimit", []byte("0"), 0o644),
		os.WriteFile("/proc/sys/net/ipv6/icmp/ratelimit", []byte("0"), 0o644))
}

func serve(h *lab.Host, tcp, udp uint16) error {
	_, errTCP := h.ServeTCP(h.Name, tcp)
	_, errUDP := h.ServeUDP(h.Name, udp)
	return errors.Join(errTCP, errUDP)
}

// routeServices has a host send what is for Services' addresses to a node, as a router in front of a cluster does.
func routeServices(h *lab.Host, n *lab.Node) error {
	var errs []error
	for _, prefix := range servicePrefixes {
		via := n.IPv4
		if prefix.Addr().Is6() {
			via = n.IPv6
		}
		errs = append(errs, h.AddRoute(prefix, via))
	}
	return errors.Join(errs...)
}

// stop ends everything.
func (c *cluster) stop() error {
	if c.fleet != nil {
		c.fleet.Stop()
	}
	return c.lab.Close()
}

func (c *cluster) manifests() string { return filepath.Join(c.dir, "manifests") }

// write puts objects into a manifest of that name, in one step.
func (c *cluster) write(name string, objects []runtime.Object) error {
	var text []byte
	for _, o := range objects {
		document, err := yaml.Marshal(o)
		if err != nil {
			return err
		}
		text = append(append(text, "---\n"...), document...)
	}
	if err := os.MkdirAll(c.manifests(), 0o755); err != nil {
		return err
	}
	path := filepath.Join(c.manifests(), name+".yaml")
	if err := os.WriteFile(path+".new", text, 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// apply makes Services what the cluster has, and returns when every node forwards accordingly. It takes them away again
// at the end of the test.
func (c *cluster) apply(t *testing.T, services ...*service) {
	t.Helper()
	c.applyLater(t, services...)
	c.settle(t)
}

// applyLater is apply without the wait.
func (c *cluster) applyLater(t *testing.T, services ...*service) {
	t.Helper()
	var objects []runtime.Object
	for _, s := range services {
		objects = append(objects, s.objects()...)
	}
	c.applyObjects(t, objects)
}

// applyObjects makes objects of Services what the cluster has, without the wait.
func (c *cluster) applyObjects(t *testing.T, objects []runtime.Object) {
	t.Helper()
	if err := c.write("services", objects); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Remove(filepath.Join(c.manifests(), "services.yaml")); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Error(err)
		}
	})
}

// settle waits until every node has what the manifests say. A Service that nobody serves is added after all else; once a
// node refuses connections to it, the node has everything that was there before.
func (c *cluster) settle(t *testing.T) {
	t.Helper()
	marker := c.nextMarker()
	if err := c.write("marker", marker.objects()); err != nil {
		t.Fatal(err)
	}
	request := lab.Request{Network: lab.TCP, To: netip.AddrPortFrom(marker.address(clusterIP, corev1.IPv4Protocol), servicePort)}
	for _, n := range c.nodes {
		eventually(t, func(ctx context.Context) error {
			ctx, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
			defer cancel()
			if _, err := n.Ask(ctx, request); lab.FailureOf(err) != lab.Refused {
				return fmt.Errorf("node %s does not refuse what nobody serves yet: %w", n.Name, errors.Join(err, c.fleet.Check()))
			}
			return nil
		})
	}
}

// nextMarker returns a Service that nobody serves and that was not there before.
func (c *cluster) nextMarker() *service {
	c.markers++
	return &service{name: fmt.Sprintf("marker-%d", c.markers), number: markers + c.markers, protocol: corev1.ProtocolTCP}
}

// await waits until an agent says that a condition holds.
func (c *cluster) await(t *testing.T, n *lab.Node, condition func(node.Status) bool) node.Status {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	s, err := c.fleet.Await(ctx, n.Name, condition)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// eventually asks for a condition until it holds.
func eventually(t *testing.T, condition func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	poll := time.NewTicker(5 * time.Millisecond)
	defer poll.Stop()
	for {
		err := condition(ctx)
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatal(err)
		case <-poll.C:
		}
	}
}
