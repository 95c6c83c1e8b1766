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

// desiredState is what the control plane says of the node, and what follows from it on this one. It belongs to the reconciler.
type desiredState struct {
	config Config
	log    *slog.Logger

	self          *frontendpb.Node // Nil before the control plane has said.
	frontends     map[string]*frontendpb.Frontend
	clusters      map[string]string // The assignment of each cluster.
	changed       map[string]bool   // Frontends that have not been set in the kernel's table.
	receivedTypes map[string]bool   // Type URLs for which at least one response has arrived.
	synced        bool              // The first complete table has been set.
	bound         map[string]bool   // UDP frontends that have a listener.
	listenersFor  listenerInputs    // What the listeners were made for.
	outdated      bool              // The node's addresses or pods may be others than when the listeners were made.
	aliases       aliases
	bridged       bridged
	checked       map[string]*frontendpb.Frontend // Those that carry a health check.
	directs       directs

	podLinks  []string       // The links that lead to pods, see podLinks.
	podRoutes []netip.Prefix // Where those lead to beyond the prefixes that are known to be pods'.
}

func newDesiredState(config Config, log *slog.Logger) *desiredState {
	return &desiredState{
		config: config, log: log,
		outdated: true, frontends: map[string]*frontendpb.Frontend{}, clusters: map[string]string{}, changed: map[string]bool{}, receivedTypes: map[string]bool{},
		bound: map[string]bool{}, aliases: aliases{numbers: map[netip.Addr]int{}}, bridged: bridged{known: map[dataplane.BridgeEndpoint]bool{}},
		checked: map[string]*frontendpb.Frontend{}, directs: newDirects(),
	}
}

// nodeResource is a resource in the agent's own cache, the same for every Envoy of the node.
type nodeResource struct{ resource cache.Resource }

// Variant implements cache.Unit.
func (nodeResource) Variant(model.View) string { return "" }

// Resources implements cache.Unit.
func (u nodeResource) Resources(string) []cache.Resource { return []cache.Resource{u.resource} }

// resourceID returns the ID of a resource in the agent's cache.
func resourceID(typeURL, name string) string { return typeURL + " " + name }

// set takes a resource in, and adds what Envoy is to be served of it to resources.
func (d *desiredState) set(typeURL string, r upstream.Resource, units map[string]cache.Contribution) {
	d.receivedTypes[typeURL] = true
	switch typeURL {
	case envoy.FrontendType:
		f := &frontendpb.Frontend{}
		if err := r.Any.UnmarshalTo(f); err != nil {
			d.log.Error("unreadable frontend", "name", r.Name, "error", err)
			return
		}
		d.frontends[r.Name] = f
		d.changed[r.Name] = true
	case envoy.NodeType:
		self := &frontendpb.Node{}
		if err := r.Any.UnmarshalTo(self); err != nil {
			d.log.Error("unreadable node", "name", r.Name, "error", err)
			return
		}
		if r.Name == d.config.Node && !proto.Equal(self, d.self) {
			d.self, d.outdated = self, true
		}
	default:
		switch typeURL {
		case envoy.AssignmentType:
			d.bridged.add(r)
			d.directs.set(r.Name, r.Any)
		case envoy.ClusterType:
			cluster := &clusterpb.Cluster{}
			if err := r.Any.UnmarshalTo(cluster); err == nil { // Envoy rejects one that is not, and that is reported.
				d.clusters[r.Name] = cluster.GetEdsClusterConfig().GetServiceName()
			}
		}
		resource, err := cache.ReceivedResource(&discoverypb.Resource{Name: r.Name, Version: r.Version, Resource: r.Any})
		if err != nil {
			d.log.Error("unusable resource", "type", typeURL, "error", err)
			return
		}
		units[resourceID(typeURL, r.Name)] = nodeResource{resource}
	}
}

// remove forgets a resource, and adds what Envoy is to lose to removals.
func (d *desiredState) remove(typeURL, name string, breaking map[string]cache.Contribution) {
	switch typeURL {
	case envoy.FrontendType:
		delete(d.frontends, name)
		d.changed[name] = true
	case envoy.NodeType: // A node that was deleted still has pods; it forwards until its agent is taken away.
	default:
		switch typeURL {
		case envoy.ClusterType:
			delete(d.clusters, name)
		case envoy.AssignmentType:
			d.directs.set(name, nil)
		}
		breaking[resourceID(typeURL, name)] = nil
	}
}

// requires returns the clusters that the changed frontends are forwarded by, with their assignments.
func (d *desiredState) requires() map[string]string {
	needs := map[string]string{}
	for name := range d.changed {
		for _, cluster := range envoy.ClusterNames(d.frontends[name]) {
			if assignment, known := d.clusters[cluster]; known {
				needs[cluster] = assignment
			}
		}
	}
	return needs
}

// isSynced reports whether the kernel's table knows the frontends. One that does not would lead traffic nowhere, while that
// of an earlier agent may still be in place.
func (d *desiredState) isSynced() bool { return d.synced }

// listenerInputs is what, beside its frontend, a listener is made from.
type listenerInputs struct {
	pods    []netip.Prefix
	aliases []envoy.Alias
}

// listeners adds Envoy's listeners that are not there yet or are to be different to resources, and those that are not needed any
// more to removals. They are made here rather than by the control plane because they depend on the node: on which sources are
// pods there, and which addresses are its own.
func (d *desiredState) listeners(units, breaking map[string]cache.Contribution) {
	if len(d.changed) == 0 && !d.outdated {
		return
	}
	d.outdated = false
	now := listenerInputs{slices.Concat(d.pods(), d.podRoutes), d.aliases.find(d.frontends)}
	same := d.listenersFor.aliases != nil && slices.Equal(now.pods, d.listenersFor.pods) && slices.Equal(now.aliases, d.listenersFor.aliases)
	d.listenersFor = now
	if !same {
		for _, class := range envoy.Classes {
			for _, l := range envoy.CatchAll(class, now.aliases) {
				d.addListener(l.GetName(), l, units)
			}
		}
	}
	for name, f := range d.frontends {
		if listens(f) && (!same || !d.bound[name] || d.changed[name]) {
			l := envoy.UDPListener(f, now.pods, now.aliases)
			d.addListener(l.GetName(), l, units)
			d.bound[name] = true
		}
	}
	for name := range d.bound {
		if !listens(d.frontends[name]) {
			breaking[resourceID(envoy.ListenerType, envoy.UDPListenerName(name))] = nil
			delete(d.bound, name)
		}
	}
}

// listens reports whether Envoy needs a listener of its own for a frontend.
func listens(f *frontendpb.Frontend) bool {
	return f.GetProtocol() == string(model.UDP) && f.GetDirect() == nil
}

func (d *desiredState) addListener(name string, l proto.Message, units map[string]cache.Contribution) {
	resource, err := cache.NewResource(envoy.ListenerType, name, l)
	if err != nil {
		d.log.Error("unusable listener", "name", name, "error", err)
		return
	}
	units[resourceID(envoy.ListenerType, name)] = nodeResource{resource}
}

// apply tells the kernel's table of the frontends that changed.
func (d *desiredState) apply(table *dataplane.Table) {
	for _, name := range slices.Sorted(maps.Keys(d.changed)) {
		f := d.frontends[name]
		table.SetFrontend(name, f)
		d.directs.use(name, f)
		if f.GetHealthCheck() != nil {
			d.checked[name] = f
		} else {
			delete(d.checked, name)
		}
	}
	clear(d.changed)
	d.directs.apply(table)
	d.synced = d.synced || d.receivedTypes[envoy.FrontendType]
}

// dataplaneNode returns what the kernel's table needs to know of the node.
func (d *desiredState) dataplaneNode() dataplane.Node {
	return dataplane.Node{
		Addresses: d.nodePortAddresses(), First: d.firstAddresses(), Aliases: d.listenersFor.aliases,
		Pods: d.pods(), PodLinks: d.podLinks, PodInterfaces: d.config.PodInterfaces,
	}
}

// findPodLinks looks which links lead to pods, unless it is configured who is one.
func (d *desiredState) findPodLinks() {
	if d.podsConfigured() {
		return
	}
	links, err := podLinks(d.addresses())
	if err != nil {
		d.log.Error("cannot see which links lead to pods", "error", err)
		return
	}
	routes, err := routesBy(links)
	if err != nil {
		d.log.Error("cannot see where the pods' links lead to", "error", err)
		return
	}
	d.podLinks = links
	known := d.pods()
	routes = slices.DeleteFunc(routes, func(r netip.Prefix) bool {
		return slices.ContainsFunc(known, func(p netip.Prefix) bool { return p.Bits() <= r.Bits() && p.Contains(r.Addr()) })
	})
	if !slices.Equal(routes, d.podRoutes) {
		d.podRoutes, d.outdated = routes, true
	}
}

// podsConfigured reports whether the agent is told who is a pod, rather than having to find out.
func (d *desiredState) podsConfigured() bool {
	return len(d.config.PodCIDRs)+len(d.config.PodInterfaces) > 0
}

// pods returns the sources that count as pods: kube-proxy's mode NodeCIDR, unless another is configured.
func (d *desiredState) pods() []netip.Prefix {
	if d.podsConfigured() {
		return d.config.PodCIDRs
	}
	var prefixes []netip.Prefix
	for _, s := range d.self.GetPodCidrs() {
		if p, err := netip.ParsePrefix(s); err == nil {
			prefixes = append(prefixes, p.Masked())
		}
	}
	return prefixes
}

// families returns the address families of the node, as kube-proxy writes them.
func (d *desiredState) families() []string {
	var families []string
	for _, a := range d.addresses() {
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
func (d *desiredState) checks() map[netip.AddrPort]healthcheck.Check {
	checks := map[netip.AddrPort]healthcheck.Check{}
	if len(d.checked) == 0 {
		return checks
	}
	addresses := d.nodePortAddresses()
	for _, f := range d.checked {
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
func (d *desiredState) addresses() []netip.Addr {
	var addresses []netip.Addr
	for _, b := range d.self.GetAddresses() {
		if a, ok := netip.AddrFromSlice(b); ok {
			addresses = append(addresses, a)
		}
	}
	return addresses
}

// nodePortAddresses returns the addresses on which NodePorts are served: as kube-proxy's nftables mode does, the node's
// first of each family, unless prefixes are configured.
func (d *desiredState) nodePortAddresses() []netip.Addr {
	if len(d.config.NodePortAddresses) > 0 {
		return localAddresses(d.config.NodePortAddresses)
	}
	return d.firstAddresses()
}

// firstAddresses returns the first address of each family of the Node object.
func (d *desiredState) firstAddresses() []netip.Addr {
	var first []netip.Addr
	for _, a := range d.addresses() {
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
