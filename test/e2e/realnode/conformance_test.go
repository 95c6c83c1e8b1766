package realnode

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// unsupported are the specs that cannot run here, whoever forwards: they need NetworkPolicy, which these CNI plugins do not
// enforce, a cloud, the kernel's SCTP module or a log of nfacct, restart what is not in a pod here, or measure.
var unsupported = []string{
	`\[Feature:NetworkPolicy\]`, `\[Provider:gce`, `\[Disruptive\]`, `\[Feature:SCTPConnectivity\]`, `\[Feature:KubeProxyNFAcct\]`,
	`\[Feature:Networking-IPv6\]`, `\[Feature:Networking-IPv4\]`, `\[Feature:Networking-DNS\]`, `\[Feature:PerformanceDNS\]`,
	`\[Feature:Networking-Performance\]`, `\[Experimental\]`,
}

// TestConformance runs Kubernetes' own tests of sig-network on three nodes in three zones, with IPv4 and IPv6.
//
// The results go to .cache/e2e/conformance.md and are compared with CONFORMANCE.md: a spec that kube-proxy passes and
// Fairlead fails is an error, unless a reason stands there. With -update the file is written from the results.
func TestConformance(t *testing.T) {
	if !*conformance {
		t.Skip("make conformance runs it: it takes most of an hour")
	}
	c := newCluster(t, 3, bridgePlain.with(dualStack))
	c.startProxy(t, *proxy)
	if err := c.startDNS(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, n := range c.nodes {
		if err := n.importImages(t.Context(), forSpecs); err != nil {
			t.Fatal(err)
		}
	}
	c.startLoadBalancers(t)
	results := c.runSpecs(t, specs{
		name: "conformance", focus: `\[sig-network\]`, skip: strings.Join(unsupported, "|"), procs: 10, timeout: 2 * time.Hour,
	})
	report := filepath.Join(c.programs, "conformance.md")
	if *proxy != "fairlead" {
		report = filepath.Join(c.programs, "conformance-"+*proxy+".md")
	}
	if err := os.WriteFile(report, []byte(results.table(*proxy)), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Logf("%s; every spec is in %s", results.summary(), report)
	known, err := readExpectations()
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		known.record(*proxy, results)
		if err := known.write(); err != nil {
			t.Fatal(err)
		}
		return
	}
	if *proxy == "fairlead" {
		for _, problem := range known.compare(results) {
			t.Error(problem)
		}
	}
}

// startProxy has Services forwarded: by Fairlead in mode replace, or by kube-proxy.
func (c *cluster) startProxy(t *testing.T, name string) {
	t.Helper()
	started := time.Now()
	switch name {
	case "fairlead":
		flags, err := c.replaceFlags()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.install(t.Context(), flags...); err != nil {
			t.Fatalf("%v; logs are in %s", err, c.dir)
		}
	case "kube-proxy":
		if err := c.startKubeProxy(t.Context(), "nftables"); err != nil {
			t.Fatalf("%v; logs are in %s", err, c.dir)
		}
	default:
		t.Fatalf("-proxy %s: want fairlead or kube-proxy", name)
	}
	t.Logf("%s forwards after %s", name, time.Since(started).Round(100*time.Millisecond))
}

// specs is a run of Kubernetes' own tests.
type specs struct {
	name        string
	focus, skip string
	procs       int
	timeout     time.Duration
}

// runSpecs runs e2e.test from a host outside the cluster, and returns what became of each spec.
func (c *cluster) runSpecs(t *testing.T, s specs) results {
	t.Helper()
	for _, name := range []string{"e2e.test", "ginkgo"} {
		if _, err := os.Stat(c.program(name)); err != nil {
			t.Fatalf("%v: make conformance builds it", err)
		}
	}
	log := filepath.Join(c.programs, s.name+".log")
	// ginkgo asks the go command for its version, which would look for it in a network that is not there.
	command := fmt.Sprintf("GOPROXY=off exec %q --procs=%d --no-color --focus=%q --skip=%q --timeout=%s --output-dir=%q --json-report=%s.json %q -- "+
		"--provider=skeleton --kubeconfig=%q --kubectl-path=%q --num-nodes=%d --dump-logs-on-failure=false --disable-log-dump >%q 2>&1",
		c.program("ginkgo"), s.procs, s.focus, s.skip, s.timeout, c.dir, s.name, c.program("e2e.test"),
		c.kube.keys.path("admin.kubeconfig"), c.program("kubectl"), len(c.nodes), log)
	started := time.Now()
	_, runErr := c.shell(t.Context(), command)
	report, err := os.ReadFile(filepath.Join(c.dir, s.name+".json"))
	if err != nil {
		t.Fatalf("e2e.test gave no report: %v, %v; its log is %s", runErr, err, log)
	}
	r, err := parseResults(report)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("e2e.test, %s: %s; its log is %s", time.Since(started).Round(time.Second), r.summary(), log)
	return r
}

// client is where requests to load balancers come from: no address of the nodes' own network, as with clients of a cloud.
const client = "203.0.113.1"

// balancers is the range that load balancers' addresses come from.
var balancers = netip.MustParsePrefix("198.51.100.0/24")

// startLoadBalancers plays a cloud's controller for the time of the test: every Service of type LoadBalancer gets an address,
// which is led to a node that has endpoints for it.
func (c *cluster) startLoadBalancers(t *testing.T) {
	t.Helper()
	if err := c.kube.host.AddAddress(netip.MustParseAddr(client)); err != nil {
		t.Fatal(err)
	}
	for _, n := range c.nodes {
		if err := n.AddRoute(netip.PrefixFrom(netip.MustParseAddr(client), 32), c.kube.host.IPv4); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	b := &loadBalancers{cluster: c, next: balancers.Addr(), routes: map[netip.Addr]netip.Addr{}}
	go func() {
		defer close(ended)
		b.run(ctx, func(err error) { t.Log(err) })
	}()
	t.Cleanup(func() { cancel(); <-ended })
}

// ready returns the addresses of the nodes with ready endpoints of a Service, by the nodes' names.
func (c *cluster) ready(ctx context.Context, namespace, service string) ([]netip.Addr, error) {
	slices, err := c.kube.client.DiscoveryV1().EndpointSlices(namespace).List(ctx, metav1.ListOptions{LabelSelector: "kubernetes.io/service-name=" + service})
	if err != nil {
		return nil, err
	}
	has := map[string]bool{}
	for _, s := range slices.Items {
		for _, e := range s.Endpoints {
			if e.NodeName != nil && (e.Conditions.Ready == nil || *e.Conditions.Ready) {
				has[*e.NodeName] = true
			}
		}
	}
	var found []netip.Addr
	for _, n := range c.nodes {
		if has[n.Name] {
			found = append(found, n.IPv4)
		}
	}
	return found, nil
}
