package node

import (
	"log/slog"
	"maps"
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
func (u nodeResource) Resources(string) ([]cache.Resource, error) {
	return []cache.Resource{u.resource}, nil
}

// resourceID returns the ID of a resource in the agent's cache.
func resourceID(typeURL, name string) string { return typeURL + " " + name }

// set takes a resource in, and adds what Envoy is to be served of it to resources.
func (d *desiredState) set(typeURL string, r upstream.Resource, resources map[string]cache.Contribution) {
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
			endpoints := endpointsOf(r.Any)
			d.bridged.add(r.Name, endpoints)
			d.directs.set(r.Name, endpoints)
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
		resources[resourceID(typeURL, r.Name)] = nodeResource{resource}
	}
}

// remove forgets a resource, and adds what Envoy is to lose to removals.
func (d *desiredState) remove(typeURL, name string, removals map[string]cache.Contribution) {
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
			d.directs.remove(name)
		}
		removals[resourceID(typeURL, name)] = nil
	}
}

// requires returns the clusters that the changed frontends are forwarded by, with their assignments.
func (d *desiredState) requires() map[string]string {
	needs := map[string]string{}
	for name := range d.changed {
		for _, cluster := range envoy.ClusterNames(name, d.frontends[name]) {
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
