package model

import (
	"net/netip"
	"strconv"
	"time"
)

// Kind says how a client came to know a frontend's address.
type Kind string

// The kinds, in the order of their right to an address that two Services claim.
const (
	ClusterIP    Kind = "ClusterIP"
	LoadBalancer Kind = "LoadBalancer"
	ExternalIP   Kind = "ExternalIP"
	NodePort     Kind = "NodePort"
)

// Origin is where a connection to a frontend starts.
type Origin int

// The origins, in the order of Frontend.Routes.
const (
	FromPod     Origin = iota // A pod.
	FromNode                  // A process in the node's own network.
	FromOutside               // Anything else.
	Origins
)

// String returns the origin's name in the forwarding table.
func (o Origin) String() string { return [...]string{"pod", "node", "outside"}[o] }

// Verdict is what happens to a connection.
type Verdict string

// The verdicts.
const (
	Forward Verdict = "forward"
	Refuse  Verdict = "refuse" // No endpoints anywhere: refused at once.
	Drop    Verdict = "drop"   // Endpoints exist, but none that a Local traffic policy allows here.
)

// Source says which source address the endpoint sees.
type Source string

// The sources.
const (
	Preserve   Source = "preserve"
	Masquerade Source = "masquerade"
)

// Frontend is one address:port/protocol that a client dials, as one node forwards it.
type Frontend struct {
	Address     netip.Addr // The zero Addr for a NodePort, which stands for the node's own addresses.
	Family      Family
	Port        uint16
	Protocol    Protocol
	Kind        Kind
	ServicePort ServicePort
	PortName    string // The Service port's name; may be empty.

	Routes       [Origins]Route // By Origin.
	SourceRanges *SourceRanges  // Who may dial it at all; Routes apply to them, everyone else is dropped. Nil: everyone may.
	Direct       *Direct        // How the kernel forwards it by itself; nil: Envoy forwards it.
	HealthCheck  *HealthCheck   // Of the Service, on its ClusterIP frontends, in their family; nil if it has none.
}

// Direct is how the kernel chooses an endpoint and rewrites the destination to it, without Envoy.
type Direct struct {
	Affinity time.Duration // How long a client keeps its endpoint after it last connected; 0: not at all. Whole seconds.
}

// HealthCheck is what a node answers a load balancer that asks whether to send it connections.
type HealthCheck struct {
	Port           uint16 `json:"port"`
	LocalEndpoints int    `json:"localEndpoints"` // Addresses on the node of which an endpoint is ready; the weight of the node.
}

// SourceRanges limit who may dial a load balancer's address.
type SourceRanges struct {
	Prefixes []netip.Prefix // In order, and no two overlap. None: nobody may.
	// Addresses are the load balancer's, in order: a node that has one itself dials it with that address as the source, and may
	// if the node's own address is in a prefix.
	Addresses []netip.Addr
}

// Strings returns the prefixes as text; never nil.
func (r *SourceRanges) Strings() []string {
	all := make([]string, len(r.Prefixes))
	for i, p := range r.Prefixes {
		all[i] = p.String()
	}
	return all
}

// Name returns the frontend's name: 10.96.0.10:80/TCP, [fd00::1]:80/TCP, *:30080/TCP, or [*]:30080/TCP for the IPv6 half of a
// NodePort.
func (f *Frontend) Name() string { return f.HostPort() + "/" + string(f.Protocol) }

// ExternalEndpoints reports whether connections from outside have endpoints of their own (externalTrafficPolicy Local).
func (f *Frontend) ExternalEndpoints() bool {
	return f.Kind != ClusterIP && f.Routes[FromOutside].Set != f.Routes[FromPod].Set
}

// HostPort returns the name without its protocol.
func (f *Frontend) HostPort() string {
	switch {
	case f.Address.IsValid():
		return netip.AddrPortFrom(f.Address, f.Port).String()
	case f.Family == IPv6:
		return "[*]:" + strconv.Itoa(int(f.Port))
	default:
		return "*:" + strconv.Itoa(int(f.Port))
	}
}

// Route is what happens to connections of one origin to a frontend.
type Route struct {
	Verdict Verdict
	Source  Source       // Only with Forward.
	Set     *EndpointSet // Never nil, and empty unless the verdict is Forward. Shared between the routes and frontends that use it.
}

// EndpointSet is the endpoints that a route chooses from, in order of address, then port.
type EndpointSet struct {
	Name      string // The ServicePort's, then /ipv6 for that family, then /local for the endpoints of this node alone.
	Endpoints []Endpoint
	Versions  []ObjectVersion // Of the objects it was made from, the one that changed last; several if they did so at once.
}
