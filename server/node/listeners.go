package node

import (
	"net/netip"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/fairlead/fairlead/cache"
	"github.com/fairlead/fairlead/translate/envoy"
	"github.com/fairlead/fairlead/translate/frontendpb"
	"github.com/fairlead/fairlead/translate/model"
)

// listenerInputs are the inputs, beside its frontend, from which the agent makes a listener.
type listenerInputs struct {
	pods    []netip.Prefix
	aliases []envoy.Alias
}

// listeners adds Envoy's new and changed listeners to resources, and those that are no longer needed to removals. The agent makes
// them rather than the control plane because they depend on the node: on which sources are its pods, and which addresses are
// its own.
func (d *desiredState) listeners(resources, removals map[string]cache.Contribution) {
	if len(d.changed) == 0 && !d.outdated {
		return
	}
	d.outdated = false
	now := listenerInputs{slices.Concat(d.pods(), d.podRoutes), d.aliases.find(d.frontends)}
	same := d.listenersFor.aliases != nil && slices.Equal(now.pods, d.listenersFor.pods) && slices.Equal(now.aliases, d.listenersFor.aliases)
	d.listenersFor = now
	if !same {
		for _, class := range frontendpb.Classes {
			for _, l := range envoy.CatchAll(class, now.aliases) {
				d.addListener(l.GetName(), l, resources)
			}
		}
	}
	for name, f := range d.frontends {
		if listens(f) && (!same || !d.bound[name] || d.changed[name]) {
			l := envoy.UDPListener(name, f, now.pods, now.aliases)
			d.addListener(l.GetName(), l, resources)
			d.bound[name] = true
		}
	}
	for name := range d.bound {
		if !listens(d.frontends[name]) {
			removals[resourceID(envoy.ListenerType, envoy.UDPListenerName(name))] = nil
			delete(d.bound, name)
		}
	}
}

// listens reports whether Envoy needs a listener of its own for a frontend.
func listens(f *frontendpb.Frontend) bool {
	return f.GetProtocol() == string(model.UDP) && f.GetDirect() == nil
}

func (d *desiredState) addListener(name string, l proto.Message, resources map[string]cache.Contribution) {
	resource, err := cache.NewResource(envoy.ListenerType, name, l)
	if err != nil {
		d.log.Error("cannot serve a listener to Envoy", "name", name, "error", err)
		return
	}
	resources[resourceID(envoy.ListenerType, name)] = nodeResource{resource}
}

// aliases numbers the node's own addresses that are frontends' addresses, too. An address keeps its number, since connections
// use it.
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
