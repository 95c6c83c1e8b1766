package realnode

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
)

// network is how a cluster's pods are connected.
type network struct {
	name      string
	plugin    map[string]any // The CNI plugin's configuration, without its address management.
	dualStack bool
	// nodeMasquerades makes the node's own rules hide pods from what is no pod, as kindnet, flannel and masquerading agents do.
	nodeMasquerades bool
}

// Pod networks. The bridge plugin's own masquerading hides a node's pods from everything that is not on the same bridge.
var (
	bridgeMasquerading = network{
		name:   "bridge with ipMasq",
		plugin: map[string]any{"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true},
	}
	bridgePlain = network{
		name:            "bridge, the node masquerades",
		plugin:          map[string]any{"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true},
		nodeMasquerades: true,
	}
	pointToPoint = network{
		name:            "ptp, the node masquerades",
		plugin:          map[string]any{"type": "ptp", "mtu": 1500},
		nodeMasquerades: true,
	}
)

// dual returns the network with IPv6 beside IPv4.
func (n network) dual() network {
	n.dualStack = true
	n.name += ", dual-stack"
	return n
}

// services returns the ranges of Services' addresses, as the API server's flag takes them.
func (n network) services() string {
	if n.dualStack {
		return serviceCIDR + "," + serviceCIDR6
	}
	return serviceCIDR
}

func (n network) pods() string {
	if n.dualStack {
		return podCIDRs + "," + podCIDRs6
	}
	return podCIDRs
}

// podCIDRs are those of one node.
func (n network) podCIDRs(m *node) []string {
	if n.dualStack {
		return []string{m.PodCIDR4.String(), m.PodCIDR6.String()}
	}
	return []string{m.PodCIDR4.String()}
}

// conflist is the node's CNI configuration.
func (n network) conflist(m *node) (string, error) {
	var ranges [][]map[string]string
	routes := []map[string]string{{"dst": "0.0.0.0/0"}}
	for _, cidr := range n.podCIDRs(m) {
		ranges = append(ranges, []map[string]string{{"subnet": cidr}})
	}
	if n.dualStack {
		routes = append(routes, map[string]string{"dst": "::/0"})
	}
	plugin := map[string]any{"ipam": map[string]any{"type": "host-local", "ranges": ranges, "routes": routes}}
	for key, value := range n.plugin {
		plugin[key] = value
	}
	portmap := map[string]any{"type": "portmap", "capabilities": map[string]bool{"portMappings": true}}
	text, err := json.Marshal(map[string]any{"cniVersion": "1.0.0", "name": "pods", "plugins": []any{plugin, portmap}})
	return string(text), err
}

// masquerade adds the rules of nodeMasquerades.
func (n network) masquerade(m *node) error {
	if !n.nodeMasquerades {
		return nil
	}
	for _, cidr := range strings.Split(n.pods(), ",") {
		command := "iptables"
		if strings.Contains(cidr, ":") {
			command = "ip6tables"
		}
		cmd := exec.Command(command, "-t", "nat", "-A", "POSTROUTING", "-s", cidr, "!", "-d", cidr, "-j", "MASQUERADE")
		err := m.Do(func() error {
			if out, err := cmd.CombinedOutput(); err != nil {
				return fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, out)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}
