package main

import (
	"cmp"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/fairlead/fairlead/server/lab"
)

// The ports of every Service and endpoint.
const (
	frontendPort = 80
	backendPort  = 8080
)

// A service is one whose manifest is written: a port 80 and its endpoints.
type service struct {
	number    int
	protocol  string // Empty: TCP.
	direct    bool   // It asks for class direct.
	endpoints []endpoint
}

type endpoint struct {
	address netip.Addr
	node    string
}

func (s service) name() string { return fmt.Sprintf("service-%05d", s.number) }

// frontend returns the cluster IP and port: 200 Services to each third byte, so that no last byte is 0 or 255.
func (s service) frontend() netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 96, byte(s.number/200 + 1), byte(s.number%200 + 1)}), frontendPort)
}

// manifest returns the Service and its slice as Kubernetes writes them.
func (s service) manifest() string {
	var b strings.Builder
	annotations := "{}"
	if s.direct {
		annotations = "{fairlead.io/forwarding: direct}"
	}
	fmt.Fprintf(&b, `apiVersion: v1
kind: Service
metadata:
  name: %[1]s
  namespace: bench
  annotations: %[6]s
spec:
  type: ClusterIP
  clusterIP: %[2]s
  clusterIPs: [%[2]s]
  ipFamilies: [IPv4]
  ports:
  - port: %[3]d
    protocol: %[5]s
    targetPort: %[4]d
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: %[1]s-1
  namespace: bench
  labels:
    kubernetes.io/service-name: %[1]s
addressType: IPv4
ports:
- port: %[4]d
  protocol: %[5]s
endpoints:
`, s.name(), s.frontend().Addr(), frontendPort, backendPort, cmp.Or(s.protocol, "TCP"), annotations)
	for _, e := range s.endpoints {
		fmt.Fprintf(&b, `- addresses: [%s]
  nodeName: %s
  conditions:
    ready: true
    serving: true
    terminating: false
`, e.address, e.node)
	}
	return b.String()
}

// nodeManifest returns a Node as Kubernetes writes it.
func nodeManifest(n *lab.Node) string {
	return fmt.Sprintf(`apiVersion: v1
kind: Node
metadata:
  name: %s
spec:
  podCIDRs: [%s, "%s"]
status:
  addresses:
  - type: InternalIP
    address: %s
  - type: InternalIP
    address: "%s"
`, n.Name, n.PodCIDR4, n.PodCIDR6, n.IPv4, n.IPv6)
}

// writeFile replaces a file at once, so that a reader sees the old or the new content.
func writeFile(folder, name, content string) error {
	temporary := filepath.Join(folder, "."+name)
	if err := os.WriteFile(temporary, []byte(content), 0o644); err != nil {
		return err
	}
	return os.Rename(temporary, filepath.Join(folder, name))
}

// writeManifests writes the nodes' manifests and a file for each Service.
func writeManifests(folder string, nodes []*lab.Node, services []service) error {
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	for _, n := range nodes {
		if err := writeFile(folder, n.Name+".yaml", nodeManifest(n)); err != nil {
			return err
		}
	}
	for _, s := range services {
		if err := writeFile(folder, s.name()+".yaml", s.manifest()); err != nil {
			return err
		}
	}
	return nil
}
