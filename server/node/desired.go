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

// desiredState is the node's resources from the control plane, and what the agent derives from them. The reconciler owns it.
type desiredState struct {
	config Config
	log    *slog.Logger

	self          *frontendpb.Node // Nil before the control plane has sent it.
	frontends     map[string]*frontendpb.Frontend
	clusters      map[string]string // The assignment of each cluster.
	changed       map[string]bool   // Frontends that are not yet set in the kernel's table.
	receivedTypes map[string]bool   // Type URLs for which at least one response has arrived.
	synced        bool              // The first complete table has been set.
	listenersFor  []envoy.Alias     // What the listeners were made for; nil: there are none yet.
	outdated      bool              // The node's addresses may have changed since the listeners were made.
	aliases       aliases
	bridged       bridged
	checked       map[string]*frontendpb.Frontend // Those that carry a health check.
	directs       directs

	podLinks []string // The links to pods, see the function podLinks.
	splice   spliceState
}

func newDesiredState(config Config, log *slog.Logger) *desiredState {
	return &desiredState{
		config: config, log: log,
		outdated: true, frontends: map[string]*frontendpb.Frontend{}, clusters: map[string]string{}, changed: map[string]bool{}, receivedTypes: map[string]bool{},
		aliases: aliases{numbers: map[netip.Addr]int{}}, bridged: bridged{known: map[dataplane.BridgeEndpoint]bool{}},
		checked: map[string]*frontendpb.Frontend{}, directs: newDirects(),
	}
}

// nodeResource is a resource in the agent's own cache, which is the same for every Envoy of the node.
type nodeResource struct{ resource cache.Resource }

// Variant implements cache.Contribution.
func (nodeResource) Variant(model.View) string { return "" }

// Resources implements cache.Contribution.
func (u nodeResource) Resources(string) ([]cache.Resource, error) {
	return []cache.Resource{u.resource}, nil
}

// resourceID returns the ID of a resource in the agent's cache.
func resourceID(typeURL, name string) string { return typeURL + " " + name }

// set stores a resource, and adds to resources what the agent has to serve to Envoy of it.
func (d *desiredState) set(typeURL string, r upstream.Resource, resources map[string]cache.Contribution) {
	d.receivedTypes[typeURL] = true
	switch typeURL {
	case envoy.FrontendType:
		f := &frontendpb.Frontend{}
		if err := r.Any.UnmarshalTo(f); err != nil {
			d.log.Error("cannot unmarshal a frontend", "name", r.Name, "error", err)
			return
		}
		d.frontends[r.Name] = f
		d.changed[r.Name] = true
	case envoy.NodeType:
		self := &frontendpb.Node{}
		if err := r.Any.UnmarshalTo(self); err != nil {
			d.log.Error("cannot unmarshal the node", "name", r.Name, "error", err)
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
			if err := r.Any.UnmarshalTo(cluster); err == nil { // Envoy NACKs a cluster that cannot be unmarshalled, and the agent logs that.
				d.clusters[r.Name] = cluster.GetEdsClusterConfig().GetServiceName()
			}
		}
		resource, err := cache.ReceivedResource(&discoverypb.Resource{Name: r.Name, Version: r.Version, Resource: r.Any})
		if err != nil {
			d.log.Error("cannot serve a resource to Envoy", "type", typeURL, "error", err)
			return
		}
		resources[resourceID(typeURL, r.Name)] = nodeResource{resource}
	}
}

// remove deletes a resource, and adds to removals what the agent has to remove from Envoy.
func (d *desiredState) remove(typeURL, name string, removals map[string]cache.Contribution) {
	switch typeURL {
	case envoy.FrontendType:
		delete(d.frontends, name)
		d.changed[name] = true
	case envoy.NodeType: // A node that was deleted may still have pods; it forwards until its agent is removed.
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

// requires returns the clusters to which the changed frontends send traffic, with their assignments.
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

// isSynced reports whether the frontends have been set in the kernel's table. A table without them would forward nothing, while
// that of an earlier agent may still be in the kernel.
func (d *desiredState) isSynced() bool { return d.synced }

// apply sets the changed frontends in the kernel's table.
func (d *desiredState) apply(table *dataplane.Table) {
	for _, name := range slices.Sorted(maps.Keys(d.changed)) {
		f := d.frontends[name]
		table.SetFrontend(name, f)
		d.splice.setFrontend(name, f)
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

// retract has the next apply set all frontends, as if none had been set.
func (d *desiredState) retract() {
	for name := range d.frontends {
		d.changed[name] = true
	}
	d.synced = false
}

// dataplaneNode returns the node's addresses and pods for the kernel's table.
func (d *desiredState) dataplaneNode() dataplane.Node {
	return dataplane.Node{
		Addresses: d.nodePortAddresses(), First: d.firstAddresses(), Aliases: d.listenersFor,
		Pods: d.pods(), PodLinks: d.podLinks, PodInterfaces: d.config.PodInterfaces,
	}
}

// checks returns the answers to load balancers' health checks: on the addresses of NodePorts, as kube-proxy does. If two
// Services want one port, the first by name gets it.
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
