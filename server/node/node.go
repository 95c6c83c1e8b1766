package node

import (
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"

	clusterpb "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"

	"github.com/fairlead/fairlead/cache"
	"github.com/fairlead/fairlead/server/node/dataplane"
	"github.com/fairlead/fairlead/server/node/healthcheck"
	"github.com/fairlead/fairlead/server/node/upstream"
	"github.com/fairlead/fairlead/translate/envoy"
	"github.com/fairlead/fairlead/translate/frontendpb"
	"github.com/fairlead/fairlead/translate/model"
)

// node is what the control plane says of the node, and what follows from it on this one. It belongs to the owner.
type node struct {
	config Config
	log    *slog.Logger

	self      *frontendpb.Node // Nil before the control plane has said.
	frontends map[string]*frontendpb.Frontend
	clusters  map[string]string // The assignment of each cluster.
	changed   map[string]bool   // Frontends that the kernel's table has not been told of.
	heard     map[string]bool   // Types of which anything has been heard.
	told      bool              // The kernel's table has been told of all frontends once.
	bound     map[string]bool   // UDP frontends that have a listener.
	shaped    shape             // What the listeners were made for.
	moved     bool              // The node's addresses or pods may be others than when the listeners were made.
	aliases   aliases
	bridged   bridged
	checked   map[string]*frontendpb.Frontend // Those that carry a health check.
	directs   directs

	podLinks  []string       // The links that lead to pods, see podLinks.
	podRoutes []netip.Prefix // Where those lead to beyond the prefixes that are known to be pods'.
}

func newNode(config Config, log *slog.Logger) *node {
	return &node{
		config: config, log: log,
		moved: true, frontends: map[string]*frontendpb.Frontend{}, clusters: map[string]string{}, changed: map[string]bool{}, heard: map[string]bool{},
		bound: map[string]bool{}, aliases: aliases{numbers: map[netip.Addr]int{}}, bridged: bridged{known: map[dataplane.BridgeEndpoint]bool{}},
		checked: map[string]*frontendpb.Frontend{}, directs: newDirects(),
	}
}

// unit is a resource in the agent's own cache, the same for every Envoy of the node.
type unit struct{ resource cache.Resource }

// Variant implements cache.Unit.
func (unit) Variant(model.View) string { return "" }

// Resources implements cache.Unit.
func (u unit) Resources(string) []cache.Resource { return []cache.Resource{u.resource} }

// unitID returns the ID of a resource in the agent's cache.
func unitID(typeURL, name string) string { return typeURL + " " + name }

// set takes a resource in, and adds what Envoy is to be served of it to units.
func (n *node) set(typeURL string, r upstream.Resource, units map[string]cache.Unit) {
	n.heard[typeURL] = true
	switch typeURL {
	case envoy.FrontendType:
		f := &frontendpb.Frontend{}
		if err := r.Any.UnmarshalTo(f); err != nil {
			n.log.Error("unreadable frontend", "name", r.Name, "error", err)
			return
		}
		n.frontends[r.Name] = f
		n.changed[r.Name] = true
	case envoy.NodeType:
		self := &frontendpb.Node{}
		if err := r.Any.UnmarshalTo(self); err != nil {
			n.log.Error("unreadable node", "name", r.Name, "error", err)
			return
		}
		if r.Name == n.config.Node && !proto.Equal(self, n.self) {
			n.self, n.moved = self, true
		}
	default:
		switch typeURL {
		case envoy.AssignmentType:
			n.bridged.add(r)
			n.directs.set(r.Name, r.Any)
		case envoy.ClusterType:
			cluster := &clusterpb.Cluster{}
			if err := r.Any.UnmarshalTo(cluster); err == nil { // Envoy rejects one that is not, and that is reported.
				n.clusters[r.Name] = cluster.GetEdsClusterConfig().GetServiceName()
			}
		}
		resource, err := cache.ReceivedResource(&discoverypb.Resource{Name: r.Name, Version: r.Version, Resource: r.Any})
		if err != nil {
			n.log.Error("unusable resource", "type", typeURL, "error", err)
			return
		}
		units[unitID(typeURL, r.Name)] = unit{resource}
	}
}

// remove forgets a resource, and adds what Envoy is to lose to breaking.
func (n *node) remove(typeURL, name string, breaking map[string]cache.Unit) {
	switch typeURL {
	case envoy.FrontendType:
		delete(n.frontends, name)
		n.changed[name] = true
	case envoy.NodeType: // A node that was deleted still has pods; it forwards until its agent is taken away.
	default:
		switch typeURL {
		case envoy.ClusterType:
			delete(n.clusters, name)
		case envoy.AssignmentType:
			n.directs.set(name, nil)
		}
		breaking[unitID(typeURL, name)] = nil
	}
}

// needs returns the clusters that the changed frontends are forwarded by, with their assignments.
func (n *node) needs() map[string]string {
	needs := map[string]string{}
	for name := range n.changed {
		for _, cluster := range envoy.ClusterNames(n.frontends[name]) {
			if assignment, known := n.clusters[cluster]; known {
				needs[cluster] = assignment
			}
		}
	}
	return needs
}

// complete reports whether the kernel's table knows the frontends. One that does not would lead traffic nowhere, while that
// of an earlier agent may still be in place.
func (n *node) complete() bool { return n.told }

// shape is what, beside its frontend, a listener is made from.
type shape struct {
	pods    []netip.Prefix
	aliases []envoy.Alias
}

// listeners adds Envoy's listeners that are not there yet or are to be different to units, and those that are not needed any
// more to breaking. They are made here rather than by the control plane because they depend on the node: on which sources are
// pods there, and which addresses are its own.
func (n *node) listeners(units, breaking map[string]cache.Unit) {
	if len(n.changed) == 0 && !n.moved {
		return
	}
	n.moved = false
	now := shape{slices.Concat(n.pods(), n.podRoutes), n.aliases.find(n.frontends)}
	same := n.shaped.aliases != nil && slices.Equal(now.pods, n.shaped.pods) && slices.Equal(now.aliases, n.shaped.aliases)
	n.shaped = now
	if !same {
		for _, class := range envoy.Classes {
			for _, l := range envoy.CatchAll(class, now.aliases) {
				n.addListener(l.GetName(), l, units)
			}
		}
	}
	for name, f := range n.frontends {
		if listens(f) && (!same || !n.bound[name] || n.changed[name]) {
			l := envoy.UDPListener(f, now.pods, now.aliases)
			n.addListener(l.GetName(), l, units)
			n.bound[name] = true
		}
	}
	for name := range n.bound {
		if !listens(n.frontends[name]) {
			breaking[unitID(envoy.ListenerType, envoy.UDPListenerName(name))] = nil
			delete(n.bound, name)
		}
	}
}

// listens reports whether Envoy needs a listener of its own for a frontend.
func listens(f *frontendpb.Frontend) bool {
	return f.GetProtocol() == string(model.UDP) && f.GetDirect() == nil
}

func (n *node) addListener(name string, l proto.Message, units map[string]cache.Unit) {
	resource, err := cache.NewResource(envoy.ListenerType, name, l)
	if err != nil {
		n.log.Error("unusable listener", "name", name, "error", err)
		return
	}
	units[unitID(envoy.ListenerType, name)] = unit{resource}
}

// apply tells the kernel's table of the frontends that changed.
func (n *node) apply(table *dataplane.Table) {
	for _, name := range slices.Sorted(maps.Keys(n.changed)) {
		f := n.frontends[name]
		table.SetFrontend(name, f)
		n.directs.use(name, f)
		if f.GetHealthCheck() != nil {
			n.checked[name] = f
		} else {
			delete(n.checked, name)
		}
	}
	clear(n.changed)
	n.directs.apply(table)
	n.told = n.told || n.heard[envoy.FrontendType]
}

// kernelNode returns what the kernel's table needs to know of the node.
func (n *node) kernelNode() dataplane.Node {
	return dataplane.Node{
		Addresses: n.nodePortAddresses(), First: n.firstAddresses(), Aliases: n.shaped.aliases,
		Pods: n.pods(), PodLinks: n.podLinks, PodInterfaces: n.config.PodInterfaces,
	}
}

// findPodLinks looks which links lead to pods, unless it is configured who is one.
func (n *node) findPodLinks() {
	if n.podsConfigured() {
		return
	}
	links, err := podLinks(n.addresses())
	if err != nil {
		n.log.Error("cannot see which links lead to pods", "error", err)
		return
	}
	routes, err := routesBy(links)
	if err != nil {
		n.log.Error("cannot see where the pods' links lead to", "error", err)
		return
	}
	n.podLinks = links
	known := n.pods()
	routes = slices.DeleteFunc(routes, func(r netip.Prefix) bool {
		return slices.ContainsFunc(known, func(p netip.Prefix) bool { return p.Bits() <= r.Bits() && p.Contains(r.Addr()) })
	})
	if !slices.Equal(routes, n.podRoutes) {
		n.podRoutes, n.moved = routes, true
	}
}

// podsConfigured reports whether the agent is told who is a pod, rather than having to find out.
func (n *node) podsConfigured() bool {
	return len(n.config.PodCIDRs)+len(n.config.PodInterfaces) > 0
}

// pods returns the sources that count as pods: kube-proxy's mode NodeCIDR, unless another is configured.
func (n *node) pods() []netip.Prefix {
	if n.podsConfigured() {
		return n.config.PodCIDRs
	}
	var prefixes []netip.Prefix
	for _, s := range n.self.GetPodCidrs() {
		if p, err := netip.ParsePrefix(s); err == nil {
			prefixes = append(prefixes, p.Masked())
		}
	}
	return prefixes
}

// families returns the address families of the node, as kube-proxy writes them.
func (n *node) families() []string {
	var families []string
	for _, a := range n.addresses() {
		family := string(model.IPv4)
		if a.Is6() {
			family = string(model.IPv6)
		}
		if !slices.Contains(families, family) {
			families = append(families, family)
		}
	}
	return families
}

// checks returns what load balancers that ask are to be told: on the addresses of NodePorts, as kube-proxy does. Where two
// Services want one port, the first by name has it.
func (n *node) checks() map[netip.AddrPort]healthcheck.Check {
	checks := map[netip.AddrPort]healthcheck.Check{}
	if len(n.checked) == 0 {
		return checks
	}
	addresses := n.nodePortAddresses()
	for _, f := range n.checked {
		name, _, _ := strings.Cut(f.GetService(), ":")
		key, err := model.ParseServiceKey(name)
		if err != nil {
			continue
		}
		for _, a := range addresses {
			at := netip.AddrPortFrom(a, uint16(f.GetHealthCheck().GetPort()))
			if other, taken := checks[at]; a.Is6() == f.GetIpv6() && (!taken || key.Compare(other.Service) < 0) {
				checks[at] = healthcheck.Check{Service: key, LocalEndpoints: int(f.GetHealthCheck().GetLocalEndpoints())}
			}
		}
	}
	return checks
}

// addresses returns the addresses of the Node object, in its order.
func (n *node) addresses() []netip.Addr {
	var addresses []netip.Addr
	for _, b := range n.self.GetAddresses() {
		if a, ok := netip.AddrFromSlice(b); ok {
			addresses = append(addresses, a)
		}
	}
	return addresses
}

// nodePortAddresses returns the addresses on which NodePorts are served: as kube-proxy's nftables mode does, the node's
// first of each family, unless prefixes are configured.
func (n *node) nodePortAddresses() []netip.Addr {
	if len(n.config.NodePortAddresses) > 0 {
		return localAddresses(n.config.NodePortAddresses)
	}
	return n.firstAddresses()
}

// firstAddresses returns the first address of each family of the Node object.
func (n *node) firstAddresses() []netip.Addr {
	var first []netip.Addr
	for _, a := range n.addresses() {
		if !slices.ContainsFunc(first, func(p netip.Addr) bool { return p.Is6() == a.Is6() }) {
			first = append(first, a)
		}
	}
	return first
}

// localAddresses returns the host's own addresses that lie in one of the prefixes.
func localAddresses(prefixes []netip.Prefix) []netip.Addr {
	assigned, err := net.InterfaceAddrs()
	if err != nil {
		return nil
	}
	var found []netip.Addr
	for _, a := range assigned {
		p, err := netip.ParsePrefix(a.String())
		if err != nil || p.Addr().IsLoopback() || p.Addr().IsLinkLocalUnicast() {
			continue
		}
		if slices.ContainsFunc(prefixes, func(in netip.Prefix) bool { return in.Contains(p.Addr()) }) {
			found = append(found, p.Addr())
		}
	}
	return found
}

// everything holds every address.
var everything = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}

// aliases numbers the node's own addresses that are frontends' addresses, too. A number is kept: connections go on.
type aliases struct{ numbers map[netip.Addr]int }

// find returns the aliases that frontends need, in order of their numbers. It is never nil.
func (a *aliases) find(frontends map[string]*frontendpb.Frontend) []envoy.Alias {
	found := []envoy.Alias{}
	local := localAddresses(everything)
	for _, f := range frontends {
		ip, ok := netip.AddrFromSlice(f.GetAddress())
		if !ok || !slices.Contains(local, ip) {
			continue
		}
		if a.numbers[ip] == 0 {
			if len(a.numbers) == envoy.MaxAliases {
				continue
			}
			a.numbers[ip] = len(a.numbers) + 1
		}
		if alias := envoy.NewAlias(ip, a.numbers[ip]); !slices.Contains(found, alias) {
			found = append(found, alias)
		}
	}
	slices.SortFunc(found, func(x, y envoy.Alias) int { return x.Alias.Compare(y.Alias) })
	return found
}
