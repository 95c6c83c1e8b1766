package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/fairlead/fairlead/server/lab"
	"github.com/fairlead/fairlead/server/lab/fleet"
	"github.com/fairlead/fairlead/test/e2e/apiserver"
)

// release is its name, after which its objects are named. The control plane of the other cases has objects named fairlead.
const release = "installed"

// TestChart checks the chart, has the API server check what it makes of several sets of values, and reads what it says of
// values that cannot be meant.
func TestChart(t *testing.T) {
	h := helm{t: t, cluster: theCluster}
	h.must("lint", h.chart(), "--strict")
	for name, values := range map[string][]string{
		"defaults":     nil,
		"replace":      {"mode=replace", "apiServer.host=10.0.0.1"},
		"address list": {"agent.servers={10.0.0.1:18000,10.0.0.2:18000}", "controlPlane.replicas=1"},
		"cert-manager": {"tls.secretName=certificate", "tls.caConfigMap=trust"},
		"everything": {
			"serviceProxyName=other", "grpc.anonymous=true", "grpc.namespaces={a,b}", "envoy.concurrency=2", "agent.maxUnavailable=10%", "agent.adminAddress=0.0.0.0",
			"agent.extraArgs={--mark-mask=0x3f0000}", "imagePullSecrets[0].name=pull", "controlPlane.nodeSelector.a=b", "envoy.podAnnotations.a=b", "agent.podLabels.a=b",
			"controlPlane.extraEnv[0].name=OTEL_EXPORTER_OTLP_ENDPOINT", "controlPlane.extraEnv[0].value=http://collector:4317", "controlPlane.hostNetwork=true",
			"commonLabels.team=network", "revisionHistoryLimit=2", "image.digest=sha256:" + strings.Repeat("0f", 32),
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := helm{t: t, cluster: theCluster}
			manifest := h.must(append([]string{"template", release, h.chart(), "--namespace", "default"}, set(values)...)...)
			if _, err := h.cluster.kube.kubectl(manifest, "apply", "--dry-run=server", "-f", "-"); err != nil {
				t.Error(err)
			}
		})
	}
	for want, values := range map[string][]string{
		"mode: replace needs apiServer.host":      {"mode=replace"},
		"tls.secretName needs tls.caConfigMap":    {"tls.secretName=certificate"},
		"value must be one of 'beside'":           {"mode=both"},
		"additional properties 'replica' not all": {"controlPlane.replica=3"},
		"minimum: got 0, want 1":                  {"envoy.user=0"},
		"'latest' does not match pattern":         {"envoyImage.digest=latest"},
		"invalid propertyName 'helm.sh/chart'":    {`commonLabels.helm\.sh/chart=mine`},
	} {
		if out, err := h.run(append([]string{"template", release, h.chart()}, set(values)...)...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("values %q: %v, want an error with %q\n%s", values, err, want, out)
		}
	}
}

// TestHelm installs the chart on two further nodes, upgrades it and rolls it back under load, and uninstalls it. The
// processes on these nodes are the ones that the chart's Pods describe.
func TestHelm(t *testing.T) {
	h := newHelm(t)
	before := h.footprints()
	collector := startCollector(t)
	h.must(append(collector.values(t), "install", release, h.chart(), "--namespace", containersNamespace, "--wait", "--timeout", "2m",
		"--set", "controlPlane.replicas=3", "--set", "apiServer.host="+h.cluster.kube.host.IPv4.String(), "--set", fmt.Sprintf("apiServer.port=%d", apiserver.Port),
		"--set", "agent.nodeSelector.e2e=helm", "--set", "envoy.nodeSelector.e2e=helm", "--set", "envoy.minReadySeconds=1")...)
	h.awaitPods("control-plane", 3)

	s, other := deploy(t, "helm", 3), deploy(t, "unlabelled", 1)
	s.kubectl("label", "service", s.name, "service.kubernetes.io/service-proxy-name=fairlead")
	pods := s.awaitPods(3)
	for _, client := range h.clients {
		s.answers(client, s.clusterIP(), pods)
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		if a, err := ask(ctx, client, other.clusterIP()); err == nil {
			t.Errorf("a service without the label, asked from %s: %s answered", client.Name, a.Server)
		}
		cancel()
	}

	t.Run("upgrade", func(t *testing.T) {
		h.in(t).underLoad(s.in(t), "upgrade", release, h.chart(), "--namespace", containersNamespace, "--reuse-values", "--set", "envoy.logLevel=info")
	})
	t.Run("rollback", func(t *testing.T) {
		h.in(t).underLoad(s.in(t), "rollback", release, "1", "--namespace", containersNamespace)
	})
	t.Run("trace", func(t *testing.T) { h.in(t).traced(s.in(t), collector) })
	t.Run("events", func(t *testing.T) { h.in(t).events() })
	t.Run("metrics", func(t *testing.T) { h.in(t).exampleMetrics() })
	t.Run("replace", func(t *testing.T) { h.in(t).replaceKubeProxy(other.in(t)) })

	// An agent that starts while its DaemonSet is deleted never sees it, and so leaves its node as it is.
	s.kubectl("--namespace", containersNamespace, "rollout", "status", "daemonset", release+"-agent", "--timeout", patience.String())
	h.must("uninstall", release, "--namespace", containersNamespace)
	h.eventually(func() error {
		if n := h.containers.running(); n > 0 {
			return fmt.Errorf("%d pods still run", n)
		}
		return nil
	})
	for i, after := range h.footprints() {
		for _, line := range after {
			if !slices.Contains(before[i], line) {
				t.Errorf("left behind on %s: %s", h.nodes[i].Name, line)
			}
		}
	}
}

// set returns the flags that set values.
func set(values []string) []string {
	var flags []string
	for _, v := range values {
		flags = append(flags, "--set", v)
	}
	return flags
}

// helm is the real Helm, and, if newHelm made it, two nodes of its own to install on.
type helm struct {
	t          *testing.T
	cluster    *cluster
	nodes      []*lab.Node
	clients    []*lab.Host // A pod on each node.
	containers *containers
}

func (h helm) in(t *testing.T) helm { h.t = t; return h }

func (h helm) chart() string {
	return filepath.Join(h.cluster.root, "deploy", "helm", "fairlead")
}

// newHelm adds two nodes to the cluster, until the test ends.
func newHelm(t *testing.T) helm {
	t.Helper()
	if ids, err := os.ReadFile("/proc/self/uid_map"); err != nil || len(strings.Fields(string(ids))) != 3 || strings.Fields(string(ids))[2] == "1" {
		t.Skip("the chart's containers run as other users than root, of which this user namespace has none: run as root")
	}
	h := helm{t: t, cluster: theCluster}
	envoy, err := fleet.FindEnvoy(h.cluster.root)
	if err == nil {
		envoy, err = filepath.EvalSymlinks(envoy)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"h1", "h2"} {
		h.addNode(name)
	}
	h.containers = &containers{cluster: h.cluster, nodes: h.nodes, envoy: envoy, pods: map[types.UID]*containerPod{}}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); h.containers.run(ctx) }()
	t.Cleanup(func() {
		cancel()
		<-ended
		if err := h.containers.failed(); err != nil {
			t.Errorf("%v; logs are in %s", err, h.cluster.dir)
		}
	})
	h.namespace()
	return h
}

// namespace makes the chart's namespace, and removes it and what a failed test left in it.
func (h *helm) namespace() {
	h.t.Helper()
	if _, err := h.cluster.kube.kubectl("", "create", "namespace", containersNamespace); err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() {
		if _, err := h.run("uninstall", release, "--namespace", containersNamespace, "--ignore-not-found"); err != nil {
			h.t.Error(err)
		}
		if _, err := h.cluster.kube.kubectl("", "delete", "namespace", containersNamespace, "--wait=false"); err != nil {
			h.t.Error(err)
		}
	})
}

// addNode adds a node with a pod on it to dial from.
func (h *helm) addNode(name string) {
	h.t.Helper()
	n, err := h.cluster.lab.AddNode(name, lab.Routed)
	if err != nil {
		h.t.Fatal(err)
	}
	host := h.cluster.kube.host
	client, err := n.AddPod("client-on-"+name, 0)
	if err := errors.Join(err, host.AddRoute(n.PodCIDR4, n.IPv4), host.AddRoute(n.PodCIDR6, n.IPv6), h.cluster.kubelets.register(h.t.Context(), n)); err != nil {
		h.t.Fatal(err)
	}
	if _, err := h.cluster.kube.kubectl("", "label", "node", name, "e2e=helm"); err != nil {
		h.t.Fatal(err)
	}
	h.nodes, h.clients = append(h.nodes, n), append(h.clients, client)
	h.t.Cleanup(func() {
		_, err := h.cluster.kube.kubectl("", "delete", "node", name)
		if err := errors.Join(err, n.Delete()); err != nil {
			h.t.Error(err)
		}
	})
}

// run runs helm beside the API server and returns what it printed.
func (h helm) run(args ...string) (string, error) {
	cmd := exec.Command(h.cluster.binary("helm"), args...)
	home := filepath.Join(h.cluster.dir, "helm")
	cmd.Env = []string{"HOME=" + home, "KUBECONFIG=" + h.cluster.kube.AdminKubeconfig(), "PATH=" + os.Getenv("PATH")}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := h.cluster.kube.host.Do(cmd.Run); err != nil {
		return stdout.String(), fmt.Errorf("helm %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// must is run, which must succeed.
func (h helm) must(args ...string) string {
	h.t.Helper()
	out, err := h.run(args...)
	if err != nil {
		h.t.Fatalf("%v\n%v; logs are in %s", err, h.containersFailed(), h.cluster.dir)
	}
	return out
}

func (h helm) containersFailed() error {
	if h.containers == nil {
		return nil
	}
	return h.containers.failed()
}

func (h helm) eventually(condition func() error) {
	h.t.Helper()
	if err := eventually(h.t.Context(), condition); err != nil {
		h.t.Fatalf("%v; logs are in %s", err, h.cluster.dir)
	}
}

// replaceKubeProxy changes over from the labelled to all other Services: the control plane moves to the nodes' own network, and a
// Service without the label is forwarded.
func (h helm) replaceKubeProxy(s *service) {
	h.t.Helper()
	h.must("upgrade", release, h.chart(), "--namespace", containersNamespace, "--reuse-values",
		"--set", "mode=replace", "--set", "controlPlane.replicas=2")
	pods := s.awaitPods(1)
	for i, client := range h.clients {
		s.answers(client, s.clusterIP(), pods)
		s.answers(h.nodes[i].Host, s.clusterIP(), pods)
	}
	h.eventually(func() error {
		replicas := h.pods("control-plane")
		for _, p := range replicas {
			if !slices.ContainsFunc(h.nodes, func(n *lab.Node) bool { return n.IPv4.String() == p.Status.PodIP }) {
				return fmt.Errorf("the address of %s is %s, want a node's", p.Name, p.Status.PodIP)
			}
		}
		if len(replicas) != 2 {
			return fmt.Errorf("%d replicas, want 2: %s", len(replicas), podNames(replicas))
		}
		return nil
	})
}

// underLoad runs helm while the Service is asked from each node, on new connections and on ones that stay. The Envoys that
// are replaced have to stay for the latter, and to go once these have ended.
func (h helm) underLoad(s *service, args ...string) {
	h.t.Helper()
	h.replaceEnvoys(s, args...)
	h.awaitPods("envoy", len(h.nodes))
	// Not before: a DaemonSet counts a node as updated when the old pod is gone.
	s.kubectl("--namespace", containersNamespace, "rollout", "status", "daemonset", release+"-envoy", "--timeout", patience.String())
}

// replaceEnvoys runs helm and waits until each node has an Envoy that is ready and one that only has connections left.
func (h helm) replaceEnvoys(s *service, args ...string) {
	h.t.Helper()
	var loads []*load
	for i, n := range h.nodes {
		for _, from := range []*lab.Host{h.clients[i], n.Host} {
			kept := loadKept(h.t, from.Name, from, s.clusterIP())
			loads = append(loads, kept, loadNew(h.t, from.Name, from, s.clusterIP()))
		}
	}
	proceed(h.t, loads...)
	started := time.Now()
	h.must(args...)
	h.eventually(func() error {
		ready, ending := 0, 0
		for _, p := range h.pods("envoy") {
			switch {
			case p.DeletionTimestamp != nil:
				ending++
			case slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
				return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
			}):
				ready++
			}
		}
		if ready != len(h.nodes) || ending != len(h.nodes) {
			return fmt.Errorf("%d Envoys are ready and %d are ending, want %d each", ready, ending, len(h.nodes))
		}
		return nil
	})
	h.t.Logf("after helm %s both nodes have their new Envoy in %s", args[0], time.Since(started).Round(time.Millisecond))
	proceed(h.t, loads...)
	stop(loads...)
	for _, l := range loads {
		l.hangUp()
	}
}

// awaitPods waits until a component has so many Pods, those that are ending included.
func (h helm) awaitPods(component string, count int) {
	h.t.Helper()
	h.eventually(func() error {
		if pods := h.pods(component); len(pods) != count {
			return fmt.Errorf("%d pods of %s, want %d: %s", len(pods), component, count, podNames(pods))
		}
		return nil
	})
}

// pods returns a component's Pods.
func (h helm) pods(component string) []corev1.Pod {
	h.t.Helper()
	list, err := h.cluster.kube.Client.CoreV1().Pods(containersNamespace).List(h.t.Context(), metav1.ListOptions{LabelSelector: "app.kubernetes.io/component=" + component})
	if err != nil {
		h.t.Fatal(err)
	}
	return list.Items
}

func podNames(pods []corev1.Pod) string {
	var names []string
	for _, p := range pods {
		names = append(names, p.Name)
	}
	return strings.Join(names, " ")
}

// footprints returns what there is on each node that an agent could have left: links, rules, routes, nftables and files.
func (h helm) footprints() [][]string {
	h.t.Helper()
	var all [][]string
	for _, n := range h.nodes {
		var lines []string
		err := n.Do(func() (err error) { lines, err = footprint(); return err })
		files := h.containers.hostPath(n, "/")
		err = errors.Join(err, filepath.WalkDir(files, func(path string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() {
				lines = append(lines, "file "+path)
			}
			if errors.Is(err, fs.ErrNotExist) {
				return nil // Before anything ran.
			}
			return err
		}))
		if err != nil {
			h.t.Fatal(err)
		}
		all = append(all, lines)
	}
	return all
}

// footprint looks at the network namespace of the calling thread.
func footprint() ([]string, error) {
	var lines []string
	links, err := netlink.LinkList()
	if err != nil {
		return nil, err
	}
	for _, l := range links {
		lines = append(lines, "link "+l.Attrs().Name)
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		rules, err := netlink.RuleList(family)
		if err != nil {
			return nil, err
		}
		for _, r := range rules {
			lines = append(lines, "rule "+r.String())
		}
		routes, err := netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
		if err != nil {
			return nil, err
		}
		for _, r := range routes {
			lines = append(lines, "route "+r.String())
		}
	}
	out, err := exec.Command("nft", "list", "tables").CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("nft: %w: %s", err, out)
	}
	return append(lines, strings.FieldsFunc(string(out), func(r rune) bool { return r == '\n' })...), nil
}
