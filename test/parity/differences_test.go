package parity

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/fairlead/fairlead/translate/model"
)

// difference is something that Fairlead means to do in another way than kube-proxy. It says exactly in which: what kube-proxy
// would have to be given, or to answer, to do the same. All else has to be equal.
type difference struct {
	row     string // How its row in translate/README.md begins.
	prepare func(*cluster)
	splits  bool // Prepare makes several Services of one.
	expect  func(*cluster, probe, outcome) outcome
}

var differences = []difference{
	{row: "an address that is none", prepare: eachAddress(func(a address) bool { return !a.readable() && !a.zeros() || a.foreign() })},
	{row: "addresses with leading zeros", prepare: eachAddress(address.zeros)},
	{row: "endpoints on loopback", prepare: eachAddress(func(a address) bool { return a.field == ofEndpoint && a.nowhere(false) })},
	{row: "frontends on loopback", prepare: eachAddress(func(a address) bool { return a.field != ofEndpoint && a.nowhere(a.field != ofExternalIP) })},
	{row: "a port, NodePort or name twice", prepare: refused},
	{row: "a policy, type, mode or affinity", prepare: oddTypes},
	{row: "one address and port in several slices", prepare: firstOfSeveral},
	{row: "a source range that cannot be read", prepare: unreadableRanges},
	{row: "two Services, or two fields of one, with one address", prepare: claims, splits: true},
	{row: "a node's own connections to a cluster IP", expect: ownAddress},
	{row: "an external IP that is a cluster IP", expect: externalClusterIP},
}

// elsewhere are the rows that are not about what happens to a connection, and where else they are proven.
var elsewhere = map[string]string{
	"endpoints beyond 65,536":                             "a test of translate",
	"frontends of one Service beyond":                     "a test of translate",
	"endpoints of all ports of one Service beyond":        "a test of translate",
	"source ranges times addresses and ports of one load": "a test of translate",
	"`sessionAffinity: ClientIP`, clients beyond":         "tests of server/node/dataplane",
	"`sessionAffinity: ClientIP`, an endpoint that comes": "tests of server/node/dataplane",
	"`healthCheckNodePort` while no Envoy":                "test/node",
	"unallocated addresses of the Service range":          "not yet there",

	"a masqueraded connection to an endpoint in the node's own network": "test/parity/packets",
	"a pod of another node that dials a NodePort":                       "test/parity/packets",
	"what is not TCP, from a node to a NodePort of its own":             "test/parity/packets",
}

// fillIn does to objects what the API server does to them, and what kube-proxy cannot work without.
func fillIn(c *cluster) {
	for _, s := range c.Services {
		spec := &s.Spec
		if len(spec.ClusterIPs) == 0 {
			spec.ClusterIPs = []string{spec.ClusterIP}
		}
		spec.ClusterIP = spec.ClusterIPs[0]
		defaultTo(&spec.Type, corev1.ServiceTypeClusterIP)
		defaultTo(&spec.SessionAffinity, corev1.ServiceAffinityNone)
		for i := range spec.Ports {
			defaultTo(&spec.Ports[i].Protocol, corev1.ProtocolTCP)
		}
		if spec.SessionAffinity == corev1.ServiceAffinityClientIP {
			defaultTo(&spec.SessionAffinityConfig, new(corev1.SessionAffinityConfig))
			defaultTo(&spec.SessionAffinityConfig.ClientIP, new(corev1.ClientIPConfig))
			defaultTo(&spec.SessionAffinityConfig.ClientIP.TimeoutSeconds, new(corev1.DefaultClientIPServiceAffinitySeconds))
		}
	}
	for _, s := range c.Slices {
		for i := range s.Ports {
			defaultTo(&s.Ports[i].Protocol, new(corev1.ProtocolTCP))
			defaultTo(s.Ports[i].Protocol, corev1.ProtocolTCP)
		}
	}
}

func defaultTo[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// address is one that stands in an object.
type address struct {
	text   string
	field  string
	family corev1.IPFamily // Of a slice.
}

const (
	ofClusterIP    = "cluster IP"
	ofExternalIP   = "external IP"
	ofLoadBalancer = "load balancer's"
	ofEndpoint     = "endpoint's"
)

func (a address) readable() bool { _, ok := readable(a.text); return ok }

// readable reads an address that all programs read in the same way.
func readable(text string) (netip.Addr, bool) {
	a, err := netip.ParseAddr(text)
	return a.Unmap(), err == nil && a.Zone() == ""
}

var leadingZero = regexp.MustCompile(`^([0-9]+\.){3}[0-9]+$`)

// zeros reports whether a number of the address has leading zeros.
func (a address) zeros() bool { return !a.readable() && leadingZero.MatchString(a.text) }

// foreign reports whether an endpoint's address is of another family than its slice.
func (a address) foreign() bool {
	ip, ok := readable(a.text)
	return ok && a.field == ofEndpoint && familyOf(ip) != a.family
}

// nowhere reports whether the address means another host on each node, or none.
func (a address) nowhere(linkLocal bool) bool {
	ip, ok := readable(a.text)
	broadcast := netip.AddrFrom4([4]byte{255, 255, 255, 255})
	return ok && (ip.IsLoopback() || ip.IsUnspecified() || ip.IsMulticast() || ip.IsLinkLocalUnicast() && !linkLocal || ip == broadcast)
}

// eachAddress leaves out the addresses that are wrong in one way.
func eachAddress(wrong func(address) bool) func(*cluster) {
	return func(c *cluster) {
		for _, s := range c.Services {
			in := func(field string) func(string) bool {
				return func(text string) bool {
					return text != corev1.ClusterIPNone && wrong(address{text: text, field: field})
				}
			}
			s.Spec.ExternalIPs = replaced(s.Spec.ExternalIPs, in(ofExternalIP))
			ingress := &s.Status.LoadBalancer.Ingress
			*ingress = slices.DeleteFunc(*ingress, func(i corev1.LoadBalancerIngress) bool { return i.IP != "" && in(ofLoadBalancer)(i.IP) })
			s.Spec.ClusterIPs = slices.DeleteFunc(s.Spec.ClusterIPs, in(ofClusterIP))
			if s.Spec.ClusterIP, s.Spec.IPFamilies = "", familiesOf(s); len(s.Spec.ClusterIPs) > 0 {
				s.Spec.ClusterIP = s.Spec.ClusterIPs[0]
			}
		}
		for _, s := range c.Slices {
			s.Endpoints = slices.DeleteFunc(s.Endpoints, func(e discoveryv1.Endpoint) bool {
				return len(e.Addresses) > 0 && wrong(address{e.Addresses[0], ofEndpoint, corev1.IPFamily(s.AddressType)})
			})
		}
	}
}

// replaced puts placeholders in the place of some addresses: whether a Service has external IPs at all decides more.
func replaced(addresses []string, wrong func(string) bool) []string {
	for i, a := range addresses {
		if wrong(a) {
			addresses[i] = placeholders[0]
		}
	}
	return addresses
}

// placeholders are addresses, of each family, that no object has and nobody dials.
var placeholders = []string{"100.64.0.0", "fd00:dead::"}

func placeholder(a netip.Addr) bool {
	return netip.MustParsePrefix("100.64.0.0/16").Contains(a) || netip.MustParsePrefix("fd00:dead::/64").Contains(a)
}

// ownAddress: what a node sends to a cluster IP itself, kube-proxy masquerades. The pod sees the node's address either way.
func ownAddress(c *cluster, p probe, o outcome) outcome {
	if p.origin == model.FromNode && c.clusterIP(p.address, p.port, p.protocol) {
		return outcome(strings.Replace(string(o), "source masqueraded", "source kept", 1))
	}
	return o
}

// externalClusterIP: to each address that is some Service's cluster IP kube-proxy masquerades what comes from outside, although
// on this port it is another one's external IP with a local policy.
func externalClusterIP(c *cluster, p probe, o outcome) outcome {
	if p.origin == model.FromOutside && !c.clusterIP(p.address, p.port, p.protocol) && c.clusterIP(p.address, 0, "") && c.localPolicy(p) {
		return outcome(strings.Replace(string(o), "source masqueraded", "source kept", 1))
	}
	return o
}

// clusterIP reports whether a Service has an address as its cluster IP, with this port; 0: with any.
func (c *cluster) clusterIP(a netip.Addr, port uint16, protocol string) bool {
	return slices.ContainsFunc(c.forwarded(), func(s *corev1.Service) bool {
		return clusterIPOf(s, familyOf(a)) == a && (port == 0 && len(s.Spec.Ports) > 0 || hasPort(s, port, protocol))
	})
}

func hasPort(s *corev1.Service, port uint16, protocol string) bool {
	return slices.ContainsFunc(s.Spec.Ports, func(p corev1.ServicePort) bool {
		return p.Port == int32(port) && strings.EqualFold(string(p.Protocol), protocol)
	})
}

// localPolicy reports whether the Service of an external IP has externalTrafficPolicy Local.
func (c *cluster) localPolicy(p probe) bool {
	return slices.ContainsFunc(c.forwarded(), func(s *corev1.Service) bool {
		local := s.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
		return local && clusterIPOf(s, familyOf(p.address)).IsValid() && hasPort(s, p.port, p.protocol) &&
			slices.ContainsFunc(s.Spec.ExternalIPs, func(text string) bool { a, ok := readable(text); return ok && a == p.address })
	})
}

// oddTypes: an unknown type is ClusterIP in every respect; kube-proxy passes over externalTrafficPolicy besides.
func oddTypes(c *cluster) {
	for _, s := range c.Services {
		switch s.Spec.Type {
		case corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort, corev1.ServiceTypeLoadBalancer, corev1.ServiceTypeExternalName:
		default:
			s.Spec.Type = corev1.ServiceTypeClusterIP
		}
	}
}

// nobody are ranges, of each family, in which no client is.
var nobody = []string{"100.64.99.0/24", "fd00:dead::9900/120"}

// unreadableRanges: a range that cannot be read binds both families, and lets nobody in.
func unreadableRanges(c *cluster) {
	for _, s := range c.Services {
		var ranges []string
		for _, text := range s.Spec.LoadBalancerSourceRanges {
			text = strings.TrimSpace(text)
			if _, err := netip.ParsePrefix(text); err == nil || text == "" {
				ranges = append(ranges, text)
			} else {
				ranges = append(ranges, nobody...)
			}
		}
		s.Spec.LoadBalancerSourceRanges = ranges
	}
}

var (
	label     = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`)
	subdomain = regexp.MustCompile(`^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$`)
)

func number(n int32) bool { return n >= 1 && n <= 65535 }

func protocol(p corev1.Protocol) bool {
	return p == corev1.ProtocolTCP || p == corev1.ProtocolUDP || p == corev1.ProtocolSCTP
}

// refused leaves out what the API server refuses: numbers, names and protocols that are none, and what is there twice.
func refused(c *cluster) {
	c.Services = slices.DeleteFunc(c.Services, func(s *corev1.Service) bool { return !label.MatchString(s.Name) })
	for _, s := range c.Services {
		refusedPorts(s)
		if !number(s.Spec.HealthCheckNodePort) {
			s.Spec.HealthCheckNodePort = 0
		}
		if a := s.Spec.SessionAffinityConfig; a != nil && a.ClientIP != nil && (*a.ClientIP.TimeoutSeconds < 1 || *a.ClientIP.TimeoutSeconds > 86400) {
			a.ClientIP.TimeoutSeconds = new(corev1.DefaultClientIPServiceAffinitySeconds)
		}
	}
	c.Slices = slices.DeleteFunc(c.Slices, func(s *discoveryv1.EndpointSlice) bool {
		return !subdomain.MatchString(s.Name) || !label.MatchString(s.Labels[discoveryv1.LabelServiceName])
	})
	for _, s := range c.Slices {
		s.Ports = slices.DeleteFunc(s.Ports, func(p discoveryv1.EndpointPort) bool {
			return p.Name != nil && *p.Name != "" && !label.MatchString(*p.Name) || p.Port != nil && !number(*p.Port) || !protocol(*p.Protocol)
		})
		for _, e := range s.Endpoints {
			if e.Hints != nil {
				e.Hints.ForNodes = slices.DeleteFunc(e.Hints.ForNodes, func(h discoveryv1.ForNode) bool { return h.Name == "" })
				e.Hints.ForZones = slices.DeleteFunc(e.Hints.ForZones, func(h discoveryv1.ForZone) bool { return h.Name == "" })
			}
		}
	}
}

func refusedPorts(s *corev1.Service) {
	seen := map[string]bool{}
	first := func(format string, args ...any) bool {
		key := fmt.Sprintf(format, args...)
		again := seen[key]
		seen[key] = true
		return !again
	}
	taken := func(p corev1.ServicePort) bool {
		return seen[fmt.Sprintf("port %d/%s", p.Port, p.Protocol)] || seen[fmt.Sprintf("name %s/%s", p.Name, p.Protocol)]
	}
	s.Spec.Ports = slices.DeleteFunc(s.Spec.Ports, func(p corev1.ServicePort) bool {
		if !number(p.Port) || !protocol(p.Protocol) || p.Name != "" && !label.MatchString(p.Name) || taken(p) {
			return true
		}
		first("port %d/%s", p.Port, p.Protocol)
		first("name %s/%s", p.Name, p.Protocol)
		return false
	})
	for i := range s.Spec.Ports {
		if p := &s.Spec.Ports[i]; !number(p.NodePort) || !first("node port %d/%s", p.NodePort, p.Protocol) {
			p.NodePort = 0
		}
	}
}
