package node

import (
	"net/netip"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/fairlead/fairlead/cache"
	"github.com/fairlead/fairlead/translate/envoy"
	"github.com/fairlead/fairlead/translate/frontendpb"
)

// listeners adds Envoy's listeners to resources if they have changed. The agent makes them rather than the control plane because
// they depend on the node: on which addresses are its own.
func (d *desiredState) listeners(resources map[string]cache.Contribution) {
	if len(d.changed) == 0 && !d.outdated {
		return
	}
	d.outdated = false
	now := d.aliases.find(d.frontends)
	if d.listenersFor != nil && slices.Equal(now, d.listenersFor) {
		return
	}
	d.listenersFor = now
	for _, class := range frontendpb.Classes {
		for _, l := range envoy.CatchAll(class, now) {
			d.addListener(l.GetName(), l, resources)
		}
	}
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
