package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fairlead/fairlead/server/lab"
	"github.com/fairlead/fairlead/server/lab/fleet"
)

// theCluster is started once for all tests: they are about one cluster that lives through a lot.
var theCluster *cluster

func TestMain(m *testing.M) {
	code, err := lab.Isolated(func() int { return runTests(m) })
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
	}
	os.Exit(code)
}

// runTests starts the cluster, runs the tests on it, and keeps the logs when one has failed.
func runTests(m *testing.M) int {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	started := time.Now()
	c, err := startCluster(ctx)
	if c != nil {
		defer c.stop()
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "e2e: %v\n", err)
		return 1
	}
	fmt.Printf("cluster up in %s\n", time.Since(started).Round(100*time.Millisecond))
	theCluster = c
	code := m.Run()
	c.failed = code != 0
	return code
}

// cluster is two nodes, a control plane, a machine outside, and Fairlead between them.
type cluster struct {
	root   string // The checkout.
	dir    string // Logs, keys and state of everything that runs.
	failed bool   // Keep dir.

	lab      *lab.Lab
	nodes    []*lab.Node
	outside  *lab.Host // Not part of the cluster: it has no route to Pods or Services.
	kube     *controlPlane
	kubelets *kubelets
	fairlead *fleet.Fleet
	clients  []*pod // One on each node, to dial from.
}

// startCluster returns what it made also when it fails, so that it can be stopped.
func startCluster(ctx context.Context) (*cluster, error) {
	root, err := filepath.Abs("../..")
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "fairlead-e2e-")
	if err != nil {
		return nil, err
	}
	c := &cluster{root: root, dir: dir, failed: true}
	for _, start := range []func(context.Context) error{c.startNetwork, c.startKubernetes, c.startFairlead, c.startClients} {
		if err := start(ctx); err != nil {
			return c, err
		}
	}
	c.failed = false
	return c, nil
}

// startNetwork joins two nodes, one whose Pods have links of their own and one whose Pods sit on a bridge, and a host outside.
func (c *cluster) startNetwork(context.Context) (err error) {
	if c.lab, err = lab.New(); err != nil {
		return err
	}
	for _, node := range []struct {
		name string
		cni  lab.CNI
	}{{"n1", lab.Routed}, {"n2", lab.Bridged}} {
		n, err := c.lab.AddNode(node.name, node.cni)
		if err != nil {
			return err
		}
		c.nodes = append(c.nodes, n)
	}
	c.outside, err = c.lab.AddOutside("outside")
	return err
}

// startKubernetes gives the control plane a host outside the cluster that knows the way to Pods, as a managed control
// plane does, and starts it and what plays the kubelets.
func (c *cluster) startKubernetes(ctx context.Context) error {
	host, err := c.lab.AddOutside("control-plane")
	if err != nil {
		return err
	}
	for _, n := range c.nodes {
		if err := errors.Join(host.AddRoute(n.PodCIDR4, n.IPv4), host.AddRoute(n.PodCIDR6, n.IPv6)); err != nil {
			return err
		}
	}
	if c.kube, err = c.startControlPlane(ctx, host); err != nil {
		return err
	}
	c.kubelets, err = c.startKubelets(ctx)
	return err
}

// startClients runs a Pod on each node that tests dial from.
func (c *cluster) startClients(ctx context.Context) error {
	for _, n := range c.nodes {
		object := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: "client-" + n.Name},
			Spec:       corev1.PodSpec{NodeName: n.Name, Containers: []corev1.Container{{Name: "client", Image: imageClient}}},
		}
		if _, err := c.kube.Client.CoreV1().Pods(metav1.NamespaceDefault).Create(ctx, object, metav1.CreateOptions{}); err != nil {
			return err
		}
		err := eventually(ctx, func() error {
			p := c.kubelets.pod("default/" + object.Name)
			if p == nil {
				return fmt.Errorf("pod %s does not run", object.Name)
			}
			c.clients = append(c.clients, p)
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// stop ends all processes, and removes their files unless something failed.
func (c *cluster) stop() {
	if c.fairlead != nil {
		c.fairlead.Stop()
	}
	if c.kube != nil {
		c.kube.stop()
	}
	if c.lab != nil {
		if err := c.lab.Close(); err != nil {
			fmt.Fprintf(os.Stderr, "e2e: %v\n", err)
		}
	}
	if c.failed {
		fmt.Fprintf(os.Stderr, "e2e: logs and state are in %s\n", c.dir)
		return
	}
	if err := os.RemoveAll(c.dir); err != nil {
		fmt.Fprintf(os.Stderr, "e2e: %v\n", err)
	}
}

// binary returns the path of a program that ./build has built.
func (c *cluster) binary(name string) string {
	return filepath.Join(c.root, ".cache", "e2e", name)
}

// log returns the path of a program's log.
func (c *cluster) log(name string) string { return filepath.Join(c.dir, name+".log") }

// startFairlead gives the control plane a service account that may read what it needs and no more, and starts it, and
// an agent and an Envoy on each node.
func (c *cluster) startFairlead(ctx context.Context) error {
	envoy, err := fleet.FindEnvoy(c.root)
	if err != nil {
		return err
	}
	manifest, err := os.ReadFile(filepath.Join("testdata", "fairlead.yaml"))
	if err != nil {
		return err
	}
	if _, err := c.kube.kubectl(string(manifest), "apply", "-f", "-"); err != nil {
		return err
	}
	kubeconfig := filepath.Join(c.dir, "fairlead.kubeconfig")
	if err := c.kube.serviceAccountConfig(ctx, kubeconfig, "fairlead", c.kube.Address()); err != nil {
		return err
	}
	c.fairlead, err = fleet.Start(fleet.Config{
		Fairlead: c.binary("fairlead"),
		Envoy:    envoy,
		Dir:      c.dir,
		Source:   []string{"--source", "kubernetes", "--kubeconfig", kubeconfig},
		Server:   c.kube.host,
		Nodes:    c.nodes,
	})
	if err != nil {
		return err
	}
	for _, n := range c.nodes {
		ctx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		if _, err := c.fairlead.Await(ctx, n.Name, fleet.Ready); err != nil {
			return err
		}
	}
	return nil
}

// patience bounds every wait for a condition.
const patience = 30 * time.Second

// eventually asks a condition again and again until it holds, ctx ends, or patience does; then it says what is missing.
func eventually(ctx context.Context, condition func() error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	started := time.Now()
	for {
		err := condition()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("after %s: %w", time.Since(started).Round(time.Millisecond), err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
