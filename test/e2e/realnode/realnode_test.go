package realnode

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// TestOneNode is the short form: Fairlead in kube-proxy's place on one node, by the README, a rolling update under load, and
// some of Kubernetes' own specs if their program has been built.
func TestOneNode(t *testing.T) {
	if *conformance || *allNetworks {
		t.Skip("only another test is asked for")
	}
	c := newCluster(t, 1, bridgeMasquerading)
	c.startProxy(t, "fairlead")
	if err := c.startDNS(t.Context()); err != nil {
		t.Fatal(err)
	}
	w := c.deploy(t, "web", 3)
	if err := c.startClients(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Run("nftables", func(t *testing.T) { w.in(t).tablesListed() })
	t.Run("rolling update", func(t *testing.T) { w.in(t).rollingUpdate(c.nodes) })
	t.Run("specs", func(t *testing.T) {
		if _, err := os.Stat(c.program("e2e.test")); err != nil {
			t.Skip("Kubernetes' own specs are not built; go -C test/e2e run ./build -for conformance builds them")
		}
		if err := c.nodes[0].importImages(t.Context(), forSpecs); err != nil {
			t.Fatal(err)
		}
		r := c.runSpecs(t, specs{
			name: "short", focus: strings.Join(shortSpecs, "|"), skip: strings.Join(unsupported, "|"), procs: 4, timeout: 10 * time.Minute,
		})
		for _, s := range r {
			if s.state != "passed" {
				t.Errorf("%s (%s): %s: %s", s.name, s.place, s.state, s.message)
			}
		}
	})
}

// shortSpecs are twenty of Kubernetes' own that a proxy decides, and that need one node and little time.
var shortSpecs = []string{
	`Services should serve a basic endpoint from pods`, `Services should serve multiport endpoints from pods`, `Services should be updated after adding or deleting ports`,
	`Services should be able to change the type from`, `Services should be able to create a functioning NodePort service`, `Services should be able to up and down services`,
	`Services should allow pods to hairpin back to themselves through services`,
	`Services should have session affinity work for service with type clusterIP \[`, `Services should serve endpoints on same port and different protocol`,
	`Services should be rejected when no endpoints exist`, `Services should create endpoints for unready pods`,
	`DNS should provide DNS for services`, `DNS should provide DNS for the cluster`, `DNS should provide DNS for ExternalName services`,
	`EndpointSlice should create Endpoints and EndpointSlices for Pods matching a Service`, `API Server should provide secure master service`,
}

// TestLifecycle takes a cluster of two nodes through what clusters go through: Fairlead comes beside kube-proxy and takes its
// place, Deployments change, a node is drained, Fairlead is upgraded and rolled back, a node is switched off and on, and
// Fairlead is uninstalled.
func TestLifecycle(t *testing.T) {
	if testing.Short() || *conformance || *allNetworks {
		t.Skip("only another test is asked for")
	}
	for _, n := range []network{bridgeMasquerading, pointToPoint.with(dualStack)} {
		t.Run(n.name, func(t *testing.T) {
			c := newCluster(t, 2, n)
			if err := c.startKubeProxy(t.Context(), "iptables"); err != nil {
				t.Fatal(err)
			}
			if err := c.startDNS(t.Context()); err != nil {
				t.Fatal(err)
			}
			w := c.deploy(t, "web", 4)
			if err := c.startClients(t.Context()); err != nil {
				t.Fatal(err)
			}
			before := c.footprints(t)
			t.Run("beside kube-proxy", func(t *testing.T) { w.in(t).besideKubeProxy() })
			t.Run("in its place", func(t *testing.T) { w.in(t).inItsPlace() })
			for _, step := range []struct {
				name string
				run  func(workload)
			}{
				{"nftables", workload.tablesListed},
				{"sources", workload.sources},
				{"scale", workload.scale},
				{"rolling update", func(w workload) { w.rollingUpdate(w.cluster.nodes) }},
				{"names", workload.names},
				{"drain", workload.drain},
				{"upgrade", workload.upgrade},
				{"rollback", workload.rollback},
				{"a node off and on", workload.offAndOn},
			} {
				t.Run(step.name, func(t *testing.T) { step.run(w.in(t)) })
			}
			t.Run("uninstall", func(t *testing.T) { c.uninstall(t, before) })
		})
	}
}

// footprints are those of all nodes.
func (c *cluster) footprints(t *testing.T) [][]string {
	t.Helper()
	var all [][]string
	for _, n := range c.nodes {
		lines, err := n.footprint()
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, lines)
	}
	return all
}

// besideKubeProxy installs Fairlead, and brings the Service over and back, by the README's commands and under load.
func (w workload) besideKubeProxy() {
	took, err := w.cluster.install(w.t.Context())
	if err != nil {
		w.t.Fatalf("%v; logs are in %s", err, w.cluster.dir)
	}
	w.t.Logf("helm install --wait took %s", took.Round(100*time.Millisecond))
	labels, err := w.cluster.readmeCommands("kubectl label")
	if err != nil || len(labels) != 2 {
		w.t.Fatalf("README's kubectl label commands: %q, %v; want two", labels, err)
	}
	tools, err := w.cluster.readmeCommands("bin/fairlead")
	if err != nil {
		w.t.Fatal(err)
	}
	named := strings.NewReplacer("NAMESPACE/NAME", "default/"+w.name, "NAME", w.name, "bin/fairlead", w.cluster.program("fairlead"))
	loads := w.startLoads(w.cluster.nodes...)
	w.typed(named.Replace(labels[0]))
	out := w.typed("set -e; " + named.Replace(strings.Join(tools, "; ")))
	w.t.Logf("what the README's commands print:\n%s", out)
	if !strings.Contains(out, w.name) {
		w.t.Errorf("fairlead explain does not speak of %s", w.name)
	}
	loads.more(100)
	w.typed(named.Replace(labels[1]))
	loads.more(100)
	loads.stop("brought over and back")
}

// typed runs a command as an administrator types it and returns what it prints.
func (w workload) typed(command string) string {
	w.t.Helper()
	out, err := w.cluster.shell(w.t.Context(), command)
	if err != nil {
		w.t.Fatalf("%v; logs are in %s", err, w.cluster.dir)
	}
	return out
}

// inItsPlace has Fairlead take kube-proxy's place.
func (w workload) inItsPlace() {
	flags, err := w.cluster.replaceFlags()
	if err != nil {
		w.t.Fatal(err)
	}
	started := time.Now()
	w.typed("helm upgrade fairlead deploy/helm/fairlead -n fairlead-system --reuse-values --wait " + strings.Join(flags, " "))
	if err := w.cluster.stopKubeProxy(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	w.t.Logf("helm upgrade --wait, and kube-proxy cleaned up: %s", time.Since(started).Round(100*time.Millisecond))
	for _, n := range w.cluster.nodes {
		client, err := n.client(w.t.Context())
		if err != nil {
			w.t.Fatal(err)
		}
		if _, err := answered(w.t.Context(), client, w.address()); err != nil {
			w.t.Fatalf("%v; logs are in %s", err, w.cluster.dir)
		}
	}
}

// uninstall removes Fairlead, which has to leave nothing on the nodes.
func (c *cluster) uninstall(t *testing.T, before [][]string) {
	if _, err := c.shell(t.Context(), "helm uninstall fairlead -n fairlead-system --wait"); err != nil {
		t.Fatal(err)
	}
	err := eventually(t.Context(), func() error {
		for i, n := range c.nodes {
			lines, err := n.footprint()
			if err != nil {
				return err
			}
			if left := missing(lines, before[i]); len(left) > 0 {
				return fmt.Errorf("left on node %s: %s", n.Name, strings.Join(left, "; "))
			}
			files, err := n.command(t.Context(), "find", "/run/fairlead", "/var/lib/fairlead", "-mindepth", "1")
			if err != nil {
				return err
			}
			if files != "" {
				return fmt.Errorf("files left on node %s: %s", n.Name, files)
			}
		}
		return nil
	})
	if err != nil {
		t.Errorf("%v; logs are in %s", err, c.dir)
	}
}

// missing returns the lines that are not in known, apart from what others make meanwhile: neighbours' and pods' routes.
func missing(lines, known []string) []string {
	have := map[string]bool{}
	for _, l := range known {
		have[l] = true
	}
	var left []string
	for _, l := range lines {
		if !have[l] {
			left = append(left, l)
		}
	}
	return left
}
