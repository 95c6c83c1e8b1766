package realnode

import (
	"bytes"
	"context"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fairlead/fairlead/server/lab"
	"github.com/fairlead/fairlead/test/e2e/realnode/machine"
)

// node is a machine with containerd and a kubelet.
type node struct {
	*lab.Node
	cluster *cluster
	disk    string // Outlives the machine's being switched off.
	init    *lab.Process
}

// addNode adds a node to the network and to the cluster, and switches it on.
func (c *cluster) addNode(ctx context.Context, name string) error {
	host, err := c.lab.AddNode(name, lab.Routed) // The CNI plugin makes what else a pod network needs.
	if err != nil {
		return err
	}
	n := &node{Node: host, cluster: c, disk: filepath.Join(c.dir, "disk-"+name)}
	c.nodes = append(c.nodes, n)
	keys := c.kube.keys
	err = errors.Join(
		// As a managed control plane does, this one knows the way to pods, whose webhooks it may have to call.
		c.kube.host.AddRoute(n.PodCIDR4, n.IPv4), c.kube.host.AddRoute(n.PodCIDR6, n.IPv6),
		keys.issue(name, pkix.Name{CommonName: "system:node:" + name, Organization: []string{"system:nodes"}}, name, n.IPv4.String(), n.IPv6.String()),
		keys.kubeconfig(name),
		os.MkdirAll(n.disk, 0o755))
	if err != nil {
		return err
	}
	// The node's pod networks are the lab's, which routes to them; the kubelet finds its node there already.
	zone := map[string]string{corev1.LabelTopologyZone: "zone-of-" + name}
	object := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: zone}}
	object.Spec.PodCIDRs = c.network.podCIDRs(n)
	object.Spec.PodCIDR = object.Spec.PodCIDRs[0]
	if _, err := c.kube.client.CoreV1().Nodes().Create(ctx, object, metav1.CreateOptions{}); err != nil {
		return err
	}
	if c.network.daemon != nil {
		for _, m := range c.nodes {
			if err := m.forgetPods(c.nodes); err != nil {
				return err
			}
		}
	}
	if err := n.on(); err != nil {
		return err
	}
	return n.importImages(ctx, forNodes)
}

// imageSet tells the images that clusters need from the large ones that only Kubernetes' own specs run.
type imageSet bool

const (
	forNodes imageSet = false
	forSpecs imageSet = true
)

// on switches the machine on.
func (n *node) on() error {
	config, err := n.config()
	if err != nil {
		return err
	}
	args, err := machine.Command(config)
	if err != nil {
		return err
	}
	cmd := &exec.Cmd{Path: "/proc/self/exe", Args: args, Env: []string{"PATH=" + os.Getenv("PATH") + ":/usr/sbin:/sbin"}}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC}
	if err := n.Do(func() error { return bridgeFilters(n.cluster.network) }); err != nil {
		return err
	}
	if err := n.cluster.network.masquerade(n); err != nil {
		return err
	}
	n.init, err = n.Run("machine "+n.Name, n.cluster.log("machine-"+n.Name), cmd)
	return err
}

// bridgeFilters shows bridged packets to the IP hooks, as Kubernetes asks of nodes whose pods sit on a bridge. Without
// the module br_netfilter there is nothing to set.
func bridgeFilters(network) error {
	for _, name := range []string{"iptables", "ip6tables"} {
		err := os.WriteFile("/proc/sys/net/bridge/bridge-nf-call-"+name, []byte("1"), 0o644)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// off switches the machine off, as a power cut does: all processes end, and nothing of its network is left but its wire.
func (n *node) off() error {
	if n.init == nil {
		return nil
	}
	n.init.Kill()
	n.init = nil
	if err := n.cleanNetwork(); err != nil {
		return err
	}
	return eventually(context.Background(), func() error { return machine.RemoveCgroup(n.cgroup()) })
}

func (n *node) cgroup() string { return n.cluster.run + "-" + n.Name }

// command runs a program in the node's namespaces and returns what it printed.
func (n *node) command(ctx context.Context, name string, args ...string) (string, error) {
	enter := []string{"--target", strconv.Itoa(n.init.PID()), "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--", name}
	cmd := exec.CommandContext(ctx, "nsenter", append(enter, args...)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("on node %s: %s %s: %w: %s", n.Name, name, strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// importImages gives containerd the images that ./images has built, since it can pull none.
func (n *node) importImages(ctx context.Context, set imageSet) error {
	archives, err := filepath.Glob(filepath.Join(n.cluster.programs, "images", "*.tar"))
	if err != nil {
		return err
	}
	if len(archives) == 0 {
		return fmt.Errorf("no images: make e2e-node builds them")
	}
	err = eventually(ctx, func() error {
		if err := n.init.Ended(); err != nil {
			return err
		}
		_, err := n.command(ctx, "ctr", "version")
		return err
	})
	if err != nil {
		return fmt.Errorf("containerd does not start: %w", err)
	}
	for _, archive := range archives {
		if imageSet(strings.Contains(archive, "e2e-test-images")) != set {
			continue
		}
		if _, err := n.command(ctx, "ctr", "--namespace", "k8s.io", "images", "import", archive); err != nil {
			return err
		}
	}
	return nil
}

// ready waits until the node says that it is.
func (n *node) ready(ctx context.Context) error {
	return eventually(ctx, func() error {
		if err := n.init.Ended(); err != nil {
			return err
		}
		object, err := n.cluster.kube.client.CoreV1().Nodes().Get(ctx, n.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, c := range object.Status.Conditions {
			if c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue {
				return nil
			}
		}
		return fmt.Errorf("node %s is not ready: %v", n.Name, object.Status.Conditions)
	})
}

// pod returns the network of a pod on this node, which it finds by the pod's address.
func (n *node) pod(p *corev1.Pod) (*lab.Host, error) {
	var ipv4, ipv6 netip.Addr
	for _, ip := range p.Status.PodIPs {
		if a, err := netip.ParseAddr(ip.IP); err != nil {
			return nil, fmt.Errorf("pod %s: %w", p.Name, err)
		} else if a.Is4() {
			ipv4 = a
		} else {
			ipv6 = a
		}
	}
	address, err := netip.ParseAddr(p.Status.PodIP)
	if err != nil {
		return nil, fmt.Errorf("pod %s has no address yet: %s", p.Name, p.Status.Phase)
	}
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/root/run/netns/*", n.init.PID()))
	if err != nil {
		return nil, err
	}
	for _, file := range files {
		h, err := n.cluster.lab.Adopt(p.Name, file, ipv4, ipv6)
		if err != nil {
			return nil, err
		}
		if found, err := h.Holds(address); err == nil && found {
			return h, nil
		}
		if err := h.Delete(); err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("pod %s: no network on node %s has its address %s", p.Name, n.Name, address)
}
