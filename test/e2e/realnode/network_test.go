package realnode

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
)

// network is how a cluster's pods are connected.
type network struct {
	name     string
	families families
	plugin   map[string]any // The CNI plugin's configuration, without its address management.
	daemon   *daemon        // Joins the nodes' pod networks; without one the lab's routes do.
	// kubernetes is the folder of the programs of another Kubernetes than the one that all else runs on.
	kubernetes string
	// nodeMasquerades makes the node's own rules hide pods from what is no pod, as kindnet, flannel and masquerading agents do.
	nodeMasquerades bool
}

// families are the IP families of pods and Services, the one that comes by default first.
type families string

const (
	onlyIPv4  families = "IPv4"
	onlyIPv6  families = "IPv6"
	dualStack families = "IPv4, IPv6"
)

// each returns what belongs to the families: one of two values, or both.
func each[T any](f families, ipv4, ipv6 T) []T {
	switch f {
	case onlyIPv4:
		return []T{ipv4}
	case onlyIPv6:
		return []T{ipv6}
	}
	return []T{ipv4, ipv6}
}

// first returns what belongs to the family that comes by default.
func first[T any](f families, ipv4, ipv6 T) T { return each(f, ipv4, ipv6)[0] }

// Pod networks. The bridge plugin's own masquerading hides a node's pods from everything that is not on the same bridge.
var (
	bridgeMasquerading = network{
		name: "bridge with ipMasq", families: onlyIPv4,
		plugin: map[string]any{"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true},
	}
	bridgePlain = network{
		name: "bridge, the node masquerades", families: onlyIPv4,
		plugin:          map[string]any{"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true},
		nodeMasquerades: true,
	}
	pointToPoint = network{
		name: "ptp, the node masquerades", families: onlyIPv4,
		plugin:          map[string]any{"type": "ptp", "mtu": 1500},
		nodeMasquerades: true,
	}
)

// with returns the network with those families.
func (n network) with(f families) network {
	n.families = f
	n.name += ", " + string(f)
	return n
}

// services returns the ranges of Services' addresses, as the API server's flag takes them.
func (n network) services() string {
	return strings.Join(each(n.families, serviceCIDR, serviceCIDR6), ",")
}

func (n network) pods() string { return strings.Join(each(n.families, podCIDRs, podCIDRs6), ",") }

// dns is the resolver's address.
func (n network) dns() string { return first(n.families, dnsService, dnsService6) }

// podCIDRs are those of one node.
func (n network) podCIDRs(m *node) []string {
	return each(n.families, m.PodCIDR4.String(), m.PodCIDR6.String())
}

// conflist is the node's CNI configuration.
func (n network) conflist(m *node) (string, error) {
	var ranges [][]map[string]string
	for _, cidr := range n.podCIDRs(m) {
		ranges = append(ranges, []map[string]string{{"subnet": cidr}})
	}
	routes := each(n.families, map[string]string{"dst": "0.0.0.0/0"}, map[string]string{"dst": "::/0"})
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
