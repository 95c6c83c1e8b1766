package realnode

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/test/e2e/realnode/machine"
)

// daemon is the part of a CNI that runs on every node.
type daemon struct {
	name     string
	args     func(n *node) []string
	files    map[string]string // By their names in the node's folder /run/etc.
	writes   []string          // Files of the machine's that it writes to: it gets copies.
	enforces bool              // It enforces NetworkPolicies.
}

// flannel is flannel, by one of its backends. Its daemon tells a node's pods the way to others, and masquerades if it is to;
// its plugin is no more than the bridge plugin, with the MTU of flannel's links.
func flannel(backend string, masquerade bool, f families) network {
	const file = "flannel-network"
	// A family without a network gets no rules.
	networks := strings.Join(each(f, fmt.Sprintf(`"Network": %q`, podCIDRs), fmt.Sprintf(`"IPv6Network": %q`, podCIDRs6)), ", ")
	config := fmt.Sprintf(`{%s, "EnableIPv4": %t, "EnableIPv6": %t, "Backend": {"Type": %q}}`, networks, f != onlyIPv6, f != onlyIPv4, backend)
	mtu := 1500
	if backend == "vxlan" {
		mtu -= 50 // Of a packet's 1500 bytes VXLAN's headers take 50.
	}
	n := network{
		name:   "flannel " + backend + masqueraded(masquerade),
		plugin: map[string]any{"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true, "mtu": mtu},
		daemon: &daemon{name: "flannel", files: map[string]string{file: config}},
	}
	n.daemon.args = func(m *node) []string {
		return []string{
			"/usr/bin/env", "NODE_NAME=" + m.Name, m.cluster.program("flannel"), "-kubeconfig", m.cluster.kube.keys.path("admin.kubeconfig"),
			"-config", filepath.Join("/run/etc", file), "-interface", "eth0", fmt.Sprintf("-masquerade=%t", masquerade),
		}
	}
	return n.with(f)
}

// kubeRouter is kube-router without its Service proxy: its daemon tells nodes by BGP the way to each other's pods, masquerades
// if it is to, and enforces NetworkPolicies.
func kubeRouter(masquerade bool, f families) network {
	n := network{
		name:   "kube-router" + masqueraded(masquerade),
		plugin: map[string]any{"type": "bridge", "bridge": "kube-bridge", "isGateway": true},
		daemon: &daemon{name: "kube-router", writes: []string{"/etc/iproute2/rt_tables"}, enforces: true},
	}
	n.daemon.args = func(m *node) []string {
		args := []string{
			m.cluster.program("kube-router"), "--kubeconfig", m.cluster.kube.keys.path("admin.kubeconfig"), "--hostname-override", m.Name,
			"--run-router", "--run-firewall", "--run-service-proxy=false", "--enable-cni=false",
			"--routes-sync-period=5s", // A node that had no address yet when it was seen first becomes a peer then.
			fmt.Sprintf("--enable-ipv4=%t", f != onlyIPv6), fmt.Sprintf("--enable-ipv6=%t", f != onlyIPv4), fmt.Sprintf("--enable-pod-egress=%t", masquerade),
		}
		for _, services := range each(f, serviceCIDR, serviceCIDR6) {
			args = append(args, "--service-cluster-ip-range", services)
		}
		return args
	}
	return n.with(f)
}

func masqueraded(yes bool) string {
	if yes {
		return " with ipMasq"
	}
	return ""
}

// addTo makes the daemon part of a node's machine.
func (d *daemon) addTo(n *node, files map[string]string, c *machine.Config) error {
	for name, content := range d.files {
		files[name] = content
	}
	for _, name := range d.writes {
		content, err := os.ReadFile(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		c.Files[name] = string(content)
	}
	c.Programs = append(c.Programs, machine.Program{Name: d.name, Args: d.args(n)})
	return nil
}

// forgetPods removes from the node the ways to other nodes' pods that the lab has given it: finding them is the daemon's work.
func (n *node) forgetPods(all []*node) error {
	return n.Do(func() error {
		for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			routes, err := netlink.RouteList(nil, family)
			if err != nil {
				return err
			}
			for _, r := range routes {
				for _, o := range all {
					if o == n || r.Dst == nil || r.Dst.String() != o.PodCIDR4.String() && r.Dst.String() != o.PodCIDR6.String() {
						continue
					}
					if err := netlink.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
						return fmt.Errorf("route %s: %w", r, err)
					}
				}
			}
		}
		return nil
	})
}
