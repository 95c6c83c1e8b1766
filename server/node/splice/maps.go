package splice

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"

	"github.com/fairlead/fairlead/server/node/envoyns"
	"github.com/fairlead/fairlead/translate/frontendpb"
)

// maps are what the programs look up.
type maps struct {
	frontends *ebpf.Map // frontend → class (4 bytes).
	links     *ebpf.Map // Index of a pod's link → index of the link that routes to the pod have: itself, or its bridge.
	slots     *ebpf.Map // Slot → index of an Envoy's veth, 0 for none; slot 0 has the number of the current Envoy.
	flows     *ebpf.Map // A pod's address and port, then a frontend → flow.
	pods      *ebpf.Map // A pod's address → a flow without its slot.
}

// frontend is an address and a port that pods dial, both in network order; an IPv4 address is mapped into IPv6.
type frontend struct {
	Address [16]byte
	Port    [2]byte
}

// flow is where a connection goes.
type flow struct {
	Slot  uint32   // Of the Envoy and class.
	Link  uint32   // Index of the pod's link.
	Frame [12]byte // Destination and source of the frames that the pod sends.
}

// The maps' sizes. Beyond them connections go by the host's hooks: those longest unused of flows and pods, which forget by
// themselves, and those to the last frontends.
const (
	maxFrontends = 65_536
	maxFlows     = 131_072
	maxPods      = 16_384
	maxLinks     = 4_096
	slotCount    = 64
)

// noPrealloc has the kernel allocate memory for what a map holds instead of for what it can hold (BPF_F_NO_PREALLOC).
const noPrealloc = 1

func (m *maps) each(f func(**ebpf.Map, *ebpf.MapSpec) error) error {
	return errors.Join(
		f(&m.frontends, &ebpf.MapSpec{Name: "fl_frontends", Type: ebpf.Hash, KeySize: 18, ValueSize: 4, MaxEntries: maxFrontends, Flags: noPrealloc}),
		f(&m.links, &ebpf.MapSpec{Name: "fl_links", Type: ebpf.Hash, KeySize: 4, ValueSize: 4, MaxEntries: maxLinks, Flags: noPrealloc}),
		f(&m.slots, &ebpf.MapSpec{Name: "fl_slots", Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: slotCount}),
		f(&m.flows, &ebpf.MapSpec{Name: "fl_flows", Type: ebpf.LRUHash, KeySize: 36, ValueSize: 20, MaxEntries: maxFlows}),
		f(&m.pods, &ebpf.MapSpec{Name: "fl_pods", Type: ebpf.LRUHash, KeySize: 16, ValueSize: 16, MaxEntries: maxPods}))
}

// openMaps makes the maps, or takes those of an earlier agent's programs: flows stay where they are.
func openMaps(earlier []ebpf.MapID) (maps, error) {
	var m maps
	found := map[string]*ebpf.Map{}
	for _, id := range earlier {
		if old, err := ebpf.NewMapFromID(id); err == nil {
			if info, err := old.Info(); err == nil && found[info.Name] == nil {
				found[info.Name] = old
				continue
			}
			_ = old.Close()
		}
	}
	err := m.each(func(to **ebpf.Map, spec *ebpf.MapSpec) (err error) {
		if old := found[spec.Name]; old != nil && spec.Compatible(old) == nil {
			*to = old
			delete(found, spec.Name)
			return nil
		}
		if *to, err = ebpf.NewMap(spec); err != nil {
			return fmt.Errorf("make the map %s: %w", spec.Name, err)
		}
		return nil
	})
	for _, unused := range found {
		_ = unused.Close()
	}
	return m, err
}

func (m *maps) close() {
	_ = m.each(func(to **ebpf.Map, _ *ebpf.MapSpec) error { return (*to).Close() })
}

// slot returns where an Envoy's veth of a class is in slots.
func slot(id envoyns.ID, class frontendpb.Class) uint32 { return uint32(id)<<2 | uint32(class) }

func key(to netip.AddrPort) frontend {
	return frontend{Address: to.Addr().As16(), Port: [2]byte{byte(to.Port() >> 8), byte(to.Port())}}
}
