package realnode

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fairlead/fairlead/server/lab"
)

// rollingUpdate replaces all pods under load.
func (w workload) rollingUpdate(nodes []*node) {
	loads := w.startLoads(nodes...)
	w.kubectl("rollout", "restart", "deployment/"+w.name)
	w.rolledOut()
	loads.stop("rolling update")
}

// tablesListed checks that both the image's nft, which wrote Fairlead's tables, and the node's, which is older where the node is
// Debian 12, can list them: an nft that crashes on them takes down a kube-proxy, or a policy engine, that runs it.
func (w workload) tablesListed() {
	agents := strings.Fields(w.typed("kubectl -n fairlead-system get pods -l app.kubernetes.io/component=agent -o name"))
	if len(agents) == 0 {
		w.t.Fatal("no agents")
	}
	for _, pod := range agents {
		if out := w.typed("kubectl -n fairlead-system exec " + pod + " -- nft list ruleset"); !strings.Contains(out, "table inet fairlead") {
			w.t.Errorf("the image's nft lists no table of Fairlead's in %s", pod)
		}
	}
	for _, n := range w.cluster.nodes {
		version, errVersion := n.command(w.t.Context(), "nft", "--version")
		out, err := n.command(w.t.Context(), "nft", "list", "ruleset")
		if err := errors.Join(errVersion, err); err != nil {
			w.t.Errorf("node %s: %v", n.Name, err)
		} else if !strings.Contains(out, "table inet fairlead") {
			w.t.Errorf("node %s: %s lists no table of Fairlead's", n.Name, strings.TrimSpace(version))
		}
	}
}

// sources checks whom pods see: the client pod itself through the cluster IP, on every node.
func (w workload) sources() {
	for _, n := range w.cluster.nodes {
		client, err := n.client(w.t.Context())
		if err != nil {
			w.t.Fatal(err)
		}
		a, err := answered(w.t.Context(), client, w.address())
		if err != nil {
			w.t.Fatal(err)
		}
		if !w.cluster.network.hidesPods() && a.Client.Addr() != client.IPv4 {
			w.t.Errorf("%s sees %s, want the client pod %s", a.Server, a.Client, client.IPv4)
		}
	}
}

// hidesPods says whether the CNI itself masquerades between nodes, so that no pod sees another node's pods.
func (n network) hidesPods() bool { return n.plugin["ipMasq"] == true }

// scale changes the number of pods under load.
func (w workload) scale() {
	loads := w.startLoads(w.cluster.nodes...)
	for _, replicas := range []int{8, 2, 4} {
		w.kubectl("scale", "deployment/"+w.name, fmt.Sprintf("--replicas=%d", replicas))
		w.rolledOut()
		loads.more(50)
	}
	loads.stop("scaled to 8, 2 and 4")
}

// drain moves all pods away from the last node under load, by the API for evictions.
func (w workload) drain() {
	last := w.cluster.nodes[len(w.cluster.nodes)-1]
	loads := w.startLoads(w.cluster.nodes...)
	w.kubectl("drain", last.Name, "--ignore-daemonsets", "--pod-selector=app="+w.name, "--timeout", patience.String())
	w.rolledOut()
	loads.more(50)
	w.kubectl("uncordon", last.Name)
	w.kubectl("rollout", "restart", "deployment/"+w.name)
	w.rolledOut()
	loads.stop("drained and uncordoned")
}

// upgrade installs the same images under a new tag, which replaces every part on every node, under load.
func (w workload) upgrade() {
	for _, n := range w.cluster.nodes {
		for _, name := range []string{"/fairlead:", "/fairlead-envoy:"} {
			if _, err := n.command(w.t.Context(), "ctr", "--namespace", "k8s.io", "images", "tag", "--force", registry+name+"0.1.0", registry+name+"0.1.1"); err != nil {
				w.t.Fatal(err)
			}
		}
	}
	w.replaceParts("helm upgrade fairlead deploy/helm/fairlead -n fairlead-system --reuse-values --set image.tag=0.1.1 --set envoyImage.tag=0.1.1", ":0.1.1")
}

func (w workload) rollback() {
	w.replaceParts("helm rollback fairlead -n fairlead-system", ":0.1.0")
}

// replaceParts changes Fairlead's release under load, and waits until each node has an Envoy of the image's tag that is ready.
// The old ones stay until the connections that were kept have ended.
func (w workload) replaceParts(command, tag string) {
	loads := w.startLoads(w.cluster.nodes...)
	started := time.Now()
	w.typed(command)
	err := eventually(w.t.Context(), func() error { return w.cluster.envoysReady(w.t.Context(), tag) })
	if err != nil {
		w.t.Errorf("%v; logs are in %s", err, w.cluster.dir)
	}
	w.t.Logf("every node has its new Envoy after %s", time.Since(started).Round(100*time.Millisecond))
	loads.more(50)
	loads.stop(command)
	for _, part := range []string{"deployment/fairlead", "daemonset/fairlead-agent", "daemonset/fairlead-envoy"} {
		w.kubectl("-n", "fairlead-system", "rollout", "status", part, "--timeout", patience.String())
	}
}

// envoysReady returns an error unless every node has a ready Envoy whose image has the tag.
func (c *cluster) envoysReady(ctx context.Context, tag string) error {
	pods, err := c.kube.client.CoreV1().Pods("fairlead-system").List(ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/component=envoy"})
	if err != nil {
		return err
	}
	ready := map[string]bool{}
	for _, p := range pods.Items {
		for _, condition := range p.Status.Conditions {
			if condition.Type == corev1.PodReady && condition.Status == corev1.ConditionTrue && strings.HasSuffix(p.Spec.Containers[0].Image, tag) {
				ready[p.Spec.NodeName] = true
			}
		}
	}
	for _, n := range c.nodes {
		if !ready[n.Name] {
			return fmt.Errorf("node %s has no ready Envoy of tag %s", n.Name, tag)
		}
	}
	return nil
}

// names asks by the Service's name, while CoreDNS is restarted, from a pod.
func (w workload) names() {
	client, err := w.cluster.nodes[0].client(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(w.t.Context())
	defer cancel()
	type outcome struct{ asked, failed int }
	done := make(chan outcome)
	go func() {
		o := outcome{}
		for ctx.Err() == nil {
			o.asked++
			if err := w.askByName(client, "ip4"); err != nil {
				o.failed++
				w.t.Error(err)
			}
		}
		done <- o
	}()
	w.kubectl("-n", "kube-system", "rollout", "restart", "deployment/coredns")
	w.kubectl("-n", "kube-system", "rollout", "status", "deployment/coredns", "--timeout", patience.String())
	cancel()
	o := <-done
	w.t.Logf("by name, while CoreDNS was replaced: %d requests, %d failed", o.asked, o.failed)
}

// askByName finds the Service's address in a family ("ip4" or "ip6") through the cluster's DNS, once, and makes a request.
func (w workload) askByName(from *lab.Host, family string) error {
	ctx, cancel := context.WithTimeout(context.Background(), requestTimeout)
	defer cancel()
	resolver := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return from.DialContext(ctx, network, net.JoinHostPort(w.cluster.network.dns(), "53"))
	}}
	started := time.Now()
	found, err := resolver.LookupNetIP(ctx, family, w.name+".default.svc.cluster.local.")
	if err != nil {
		return fmt.Errorf("after %s: %w", time.Since(started).Round(time.Millisecond), err)
	}
	_, err = from.Ask(ctx, lab.Request{Network: lab.HTTP, To: netip.AddrPortFrom(found[0].Unmap(), 80)})
	return err
}

// offAndOn switches the last node off and on. Nothing fails between the others, and it recovers without anybody's help.
func (w workload) offAndOn() {
	last := w.cluster.nodes[len(w.cluster.nodes)-1]
	others := w.cluster.nodes[:len(w.cluster.nodes)-1]
	// Its pods leave first: who asks a dead node's pods waits in vain until Kubernetes has noticed, whatever forwards.
	w.kubectl("drain", last.Name, "--ignore-daemonsets", "--pod-selector=app="+w.name, "--timeout", patience.String())
	w.rolledOut()
	loads := w.startLoads(others...)
	if err := last.off(); err != nil {
		w.t.Fatal(err)
	}
	loads.more(100)
	started := time.Now()
	if err := last.on(); err != nil {
		w.t.Fatal(err)
	}
	if _, err := answered(w.t.Context(), last.Host, w.address()); err != nil {
		w.t.Errorf("from the node that was off: %v; logs are in %s", err, w.cluster.dir)
	}
	w.t.Logf("the node forwards %s after it was switched on", time.Since(started).Round(100*time.Millisecond))
	err := eventually(w.t.Context(), func() error {
		client, err := last.client(w.t.Context())
		if err == nil {
			_, err = client.Ask(w.t.Context(), lab.Request{Network: lab.HTTP, To: w.address()})
		}
		return err
	})
	if err != nil {
		w.t.Errorf("from a pod on the node that was off: %v; logs are in %s", err, w.cluster.dir)
	}
	w.t.Logf("its pods are back and reach the Service %s after it was switched on", time.Since(started).Round(100*time.Millisecond))
	w.kubectl("uncordon", last.Name)
	loads.stop("a node off and on")
}
