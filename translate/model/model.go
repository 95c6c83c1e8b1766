// Package model holds Fairlead's nouns: what a Service, an endpoint and a node are, and what happens to a connection.
//
// Everything in it is a plain value of the standard library's types. Values are immutable once handed out: whoever
// needs a different one makes a new one.
package model

import (
	"cmp"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// Protocol is a transport protocol in Kubernetes' spelling.
type Protocol string

// The protocols that a Service port can name.
const (
	TCP  Protocol = "TCP"
	UDP  Protocol = "UDP"
	SCTP Protocol = "SCTP"
)

// Family is an IP address family in Kubernetes' spelling.
type Family string

// The two families.
const (
	IPv4 Family = "IPv4"
	IPv6 Family = "IPv6"
)

// FamilyOf returns the family of a valid, unmapped address.
func FamilyOf(a netip.Addr) Family {
	if a.Is4() {
		return IPv4
	}
	return IPv6
}

// ServiceKey names a Service.
type ServiceKey struct{ Namespace, Name string }

// String returns namespace/name.
func (k ServiceKey) String() string { return k.Namespace + "/" + k.Name }

// ParseServiceKey reads namespace/name, or a name in the namespace default.
func ParseServiceKey(s string) (ServiceKey, error) {
	namespace, name, qualified := strings.Cut(s, "/")
	if !qualified {
		namespace, name = "default", s
	}
	if namespace == "" || name == "" || strings.Contains(name, "/") {
		return ServiceKey{}, fmt.Errorf("service %q: use namespace/name", s)
	}
	return ServiceKey{namespace, name}, nil
}

// Compare orders keys by namespace, then name.
func (k ServiceKey) Compare(o ServiceKey) int {
	return cmp.Or(strings.Compare(k.Namespace, o.Namespace), strings.Compare(k.Name, o.Name))
}

// ServicePort is the identity of one port of a Service. Port is the port's name, or its number when it has none:
// Kubernetes lets a port go without a name only when it is the Service's single port, so the two cannot be confused.
type ServicePort struct {
	Service  ServiceKey
	Port     string
	Protocol Protocol
}

// String returns namespace/name:port/PROTOCOL.
func (p ServicePort) String() string {
	return p.Service.String() + ":" + p.Port + "/" + string(p.Protocol)
}

// TrafficPolicy is Cluster or Local.
type TrafficPolicy string

// The traffic policies.
const (
	Cluster TrafficPolicy = "Cluster"
	Local   TrafficPolicy = "Local"
)

// Service is a Service that a node forwards. A Service that needs no forwarding (headless, ExternalName, another
// proxy's) has no model.
type Service struct {
	Key     ServiceKey
	Created time.Time // creationTimestamp; decides between two Services that claim the same frontend.
	Version ObjectVersion

	Ports           []Port
	ClusterIPs      []netip.Addr // At most one of each family.
	ExternalIPs     []netip.Addr
	LoadBalancerIPs []netip.Addr // Only those that the proxy answers for (ipMode VIP or unset).

	InternalTrafficPolicy TrafficPolicy
	ExternalTrafficPolicy TrafficPolicy

	// SourceRanges are the sources that may dial the load balancer's addresses of a family: everyone where the map has no
	// entry, nobody where the entry is empty. No two of them overlap.
	SourceRanges map[Family][]netip.Prefix

	Affinity time.Duration // How long a client keeps its endpoint after it last connected; 0: not at all. Whole seconds.
	Direct   bool          // Its connections are to be forwarded by the kernel alone.

	HealthCheckNodePort uint16 // Where nodes report to the load balancer how many local endpoints they have; 0: nowhere.
}

// Port is one port of a Service.
type Port struct {
	Name     string // Empty for a single unnamed port. EndpointSlices refer to it by this name.
	Protocol Protocol
	Port     uint16
	NodePort uint16 // 0 when there is none.
}

// ID returns the identity of port p of Service s.
func (s *Service) ID(p Port) ServicePort {
	name := p.Name
	if name == "" {
		name = strconv.Itoa(int(p.Port))
	}
	return ServicePort{Service: s.Key, Port: name, Protocol: p.Protocol}
}

// EndpointSlice is part of the endpoints of one Service, all of one family.
type EndpointSlice struct {
	Namespace, Name string
	Service         ServiceKey
	Version         ObjectVersion

	Family    Family
	Ports     []SlicePort
	Endpoints []SliceEndpoint
}

// SlicePort is one port that every endpoint of a slice serves.
type SlicePort struct {
	Name     string
	Protocol Protocol
	Port     uint16
}

// SliceEndpoint is one endpoint of a slice. Of several addresses only the first counts, as in kube-proxy.
type SliceEndpoint struct {
	Address                     netip.Addr
	Node, Zone                  string
	Ready, Serving, Terminating bool
	NodeHints, ZoneHints        []string // forNodes and forZones.
	Target                      string   // Kind namespace/name of targetRef, for people; may be empty.
}

// Endpoint is one address:port that can answer for a ServicePort.
type Endpoint struct {
	AddrPort netip.AddrPort
	SliceEndpoint
}

// Node is a cluster's node as the API describes it.
type Node struct {
	Name, Zone string
	Addresses  []netip.Addr // InternalIPs, then ExternalIPs, in the object's order.
	PodCIDRs   []netip.Prefix
	Ineligible bool // It is being deleted, or marked for it: load balancers should send it nothing new.
	Version    ObjectVersion
}

// ObjectKind is the kind of a Kubernetes object that Fairlead reads.
type ObjectKind string

// The kinds of objects.
const (
	KindService       ObjectKind = "Service"
	KindEndpointSlice ObjectKind = "EndpointSlice"
	KindNode          ObjectKind = "Node"
	KindEndpoints     ObjectKind = "Endpoints" // Read only to report that EndpointSlices are read in their place.
)

// ObjectKey names an object. Nodes have no namespace.
type ObjectKey struct {
	Kind            ObjectKind
	Namespace, Name string
}

// String returns kind namespace/name, as Problem.Object and ObjectVersion.Object spell it.
func (k ObjectKey) String() string {
	if k.Namespace == "" {
		return string(k.Kind) + " " + k.Name
	}
	return string(k.Kind) + " " + k.Namespace + "/" + k.Name
}

// Object is what one Kubernetes object means: at most one of a Service, an EndpointSlice and a Node, and what is wrong
// with it. An object that needs no forwarding holds none of them, and may still have problems.
type Object struct {
	Key      ObjectKey
	Service  *Service
	Slice    *EndpointSlice
	Node     *Node
	Problems []Problem
}

// View is all that may differ between two nodes' translations. It is the only per-node input there is.
type View struct {
	Node, Zone string
}

// ObjectVersion is the version of an object that a result was made from, for traces.
type ObjectVersion struct {
	Object          string    // Kind namespace/name.
	ResourceVersion string    // Empty when the source has none.
	At              time.Time // When the object changed or, failing that, was seen to have changed.
}
