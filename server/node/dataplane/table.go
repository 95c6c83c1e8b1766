// Package dataplane programs the host's nftables table: which address and port is forwarded to which class of the current Envoy
// instance, forwarded directly, refused or dropped. A picture of a packet's way stands above the chains, in chains.go.
//
// Frontends, the node's addresses and the Envoy instances come in; one nftables transaction goes out per commit, and it
// contains only what changed. The package owns its tables entirely, and changes no other.
package dataplane

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"sigs.k8s.io/knftables"

	"github.com/fairlead/fairlead/server/node/envoyns"
	"github.com/fairlead/fairlead/translate/envoy"
	"github.com/fairlead/fairlead/translate/frontendpb"
)

// TableName is the name of the host's tables, in the families inet and bridge.
const TableName = "fairlead"

// Node is what the table knows of the node.
type Node struct {
	Addresses []netip.Addr  // Those that NodePorts are served on, the preferred first of each family.
	First     []netip.Addr  // The node's first address of each family, by which source ranges know it.
	Aliases   []envoy.Alias // Of the node's own addresses that are frontends' addresses, too.

	// A packet comes from a pod of this node if any of these three matches it. All others come from outside.
	Pods          []netip.Prefix // By source.
	PodLinks      []string       // By the link, if the node also routes the source back over it.
	PodInterfaces []string       // By the link alone; a name, or the beginning of names followed by a *.
}

// Instances are the Envoys of the node.
type Instances struct {
	Live    []envoyns.ID // Those whose connections continue, in order.
	Current envoyns.ID   // Gets the new connections; 0: there is none, and new connections are dropped.
}

// Table is the host's table. It is used by one goroutine.
type Table struct {
	nft     knftables.Interface
	config  envoyns.Config
	monitor *Monitor // Nil: nobody watches.

	node      Node
	instances Instances
	wanted    map[string]*frontendpb.Frontend
	changed   map[string]bool // Names of frontends that differ from what the kernel has.

	picks    picks
	applied  map[string][]element // By frontend's name; what the kernel has.
	podLinks []string             // That the kernel has.
	static   bool                 // The kernel has the chains of node and Envoy instances.
	complete bool                 // The kernel has the table at all.

	stale flowFilter   // Flows that conntrack still has to delete.
	later []laterFlows // Others' flows to look for again.
}

// New returns a table that the first Commit writes to the kernel, as the agent's own for the monitor; nil is none. It fails when
// nft is missing or too old.
func New(config envoyns.Config, monitor *Monitor) (*Table, error) {
	nft, err := knftables.New(knftables.InetFamily, TableName)
	if err != nil {
		return nil, fmt.Errorf("nftables: %w (is the nft program installed?)", err)
	}
	t := newTable(config, nft)
	t.monitor = monitor
	return t, nil
}

func newTable(config envoyns.Config, nft knftables.Interface) *Table {
	return &Table{nft: nft, config: config, wanted: map[string]*frontendpb.Frontend{}, changed: map[string]bool{}, applied: map[string][]element{}, picks: newPicks()}
}

// Monitor returns the monitor that the table was made with.
func (t *Table) Monitor() *Monitor { return t.monitor }

// SetFrontend has the next Commit set the frontend of that name to f; nil removes it.
func (t *Table) SetFrontend(name string, f *frontendpb.Frontend) {
	t.picks.use(name, t.wanted[name], f)
	if f == nil {
		delete(t.wanted, name)
	} else {
		t.wanted[name] = f
	}
	t.changed[name] = true
}

// SetNode has the next Commit program the table for node n.
func (t *Table) SetNode(n Node) {
	if !slices.Equal(n.Aliases, t.node.Aliases) || !slices.Equal(n.First, t.node.First) {
		for name := range t.wanted {
			t.changed[name] = true
		}
	}
	if !slices.Equal(n.Addresses, t.node.Addresses) || !slices.Equal(n.Pods, t.node.Pods) || !slices.Equal(n.PodInterfaces, t.node.PodInterfaces) {
		t.static = false
	}
	t.node = n
}

// SetInstances has the next Commit program the table for the Envoy instances g.
func (t *Table) SetInstances(g Instances) {
	if g.Current != t.instances.Current || !slices.Equal(g.Live, t.instances.Live) {
		t.instances, t.static = g, false
	}
}

// Forget has the next Commit write the whole table, whatever the kernel has.
func (t *Table) Forget() { t.complete = false }

// Dirty reports whether a Commit has anything to do.
func (t *Table) Dirty() bool {
	return !t.complete || !t.static || len(t.changed) > 0 || len(t.picks.dirty) > 0 || !t.stale.empty() || !slices.Equal(t.podLinks, t.node.PodLinks)
}

// Commit programs the kernel's table with what was set, in one transaction: a packet sees the old table or the new one. After
// an error the kernel has the old one, and the next Commit writes the whole table again.
func (t *Table) Commit(ctx context.Context) error {
	if !t.Dirty() {
		return nil
	}
	done, err := t.write(ctx, false)
	if err != nil && !t.complete {
		// Another version may have left objects of a type that nft cannot change: replace the table.
		done, err = t.write(ctx, true)
	}
	if err != nil {
		t.complete = false
		return fmt.Errorf("nftables: %w", err)
	}
	if t.complete {
		for name := range t.changed {
			delete(t.applied, name)
		}
		maps.Copy(t.applied, done.elements)
	} else {
		t.applied = done.elements
	}
	clear(t.changed)
	t.picks.commit(done.picks)
	t.complete, t.static, t.podLinks = true, true, t.node.PodLinks
	t.stale.add(done.removed, done.added)
	t.stale.end(done.picks.ended)
	t.lookAgain(done.added, time.Now())
	return t.forgetFlows()
}

// Remove deletes the table from the kernel. It is no error if the kernel has none.
func (t *Table) Remove(ctx context.Context) error {
	t.complete = false
	tx := t.nft.NewTransaction()
	tx.Add(&knftables.Table{})
	tx.Delete(&knftables.Table{})
	if err := t.nft.Run(ctx, tx); err != nil {
		return fmt.Errorf("nftables: remove table %s: %w", TableName, err)
	}
	return nil
}

// Cleanup deletes the agent's tables from the kernel, whichever process wrote them.
func Cleanup(ctx context.Context, config envoyns.Config) error {
	t, err := New(config, nil)
	if err != nil {
		return err
	}
	return errors.Join(t.Remove(ctx), removeBridge(ctx))
}

// sortedByFamily returns the addresses of one family, in their order.
func sortedByFamily(addresses []netip.Addr, ipv6 bool) []netip.Addr {
	return slices.DeleteFunc(slices.Clone(addresses), func(a netip.Addr) bool { return a.Is6() != ipv6 })
}
