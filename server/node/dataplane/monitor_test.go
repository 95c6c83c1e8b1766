package dataplane

import (
	"context"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"sigs.k8s.io/knftables"

	"github.com/fairlead/fairlead/server/node/netevent"
)

// monitored returns a table with a monitor that follows it, and a function that returns what the monitor has heard of all that
// happened before.
func monitored(t *testing.T) (*Table, func() Disturbance) {
	t.Helper()
	s, err := netevent.Subscribe(unix.NETLINK_NETFILTER, tablesGroup)
	if err != nil {
		t.Fatal(err)
	}
	table := newTestTable(t)
	m := NewMonitor()
	table.monitor = m
	ctx, cancel := context.WithCancel(t.Context())
	var following sync.WaitGroup
	following.Go(func() { m.follow(ctx, s) })
	t.Cleanup(func() { cancel(); following.Wait() })
	look := func() Disturbance {
		t.Helper()
		last, err := generation()
		if err != nil {
			t.Fatal(err)
		}
		seen := func() bool {
			m.mutex.Lock()
			defer m.mutex.Unlock()
			return !isAfter(last, m.seen)
		}
		poll := time.NewTicker(time.Millisecond)
		defer poll.Stop()
		for !seen() {
			select {
			case <-poll.C:
			case <-t.Context().Done():
				t.Fatal("the monitor does not hear of transactions")
			}
		}
		return m.Look()
	}
	mustCommit(t, table)
	if got := look(); got != MaybeDisturbed {
		t.Fatalf("at first: %d; what happened before is not known", got)
	}
	return table, look
}

// The monitor tells the agent's own transactions, of every kind and also between those of others, from what others do to the
// agent's tables.
func TestMonitor(t *testing.T) {
	table, look := monitored(t)
	other, err := knftables.New(knftables.InetFamily, "other")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		tx := other.NewTransaction()
		tx.Delete(&knftables.Table{})
		if err := other.Run(context.Background(), tx); err != nil {
			t.Error(err)
		}
	})
	run := func(nft knftables.Interface, change func(*knftables.Transaction)) {
		t.Helper()
		tx := nft.NewTransaction()
		change(tx)
		if err := nft.Run(t.Context(), tx); err != nil {
			t.Fatal(err)
		}
	}
	foreign := func() { run(other, func(tx *knftables.Transaction) { tx.Add(&knftables.Table{}) }) }
	bridges := []Bridge{{"cni0", "02:00:00:00:00:01", []BridgeEndpoint{{"tcp", netip.MustParseAddrPort("10.244.1.10:80")}}}}
	t.Cleanup(func() {
		if err := removeBridge(context.Background()); err != nil {
			t.Error(err)
		}
	})
	for _, step := range []struct {
		name string
		do   func()
		want Disturbance
	}{
		{"own frontend added", func() { table.SetFrontend("it", clusterIP("10.96.0.10", 80, "TCP")); mustCommit(t, table) }, NoDisturbance},
		{"own frontend removed", func() { table.SetFrontend("it", nil); mustCommit(t, table) }, NoDisturbance},
		{"everything written again", func() { table.Forget(); mustCommit(t, table) }, NoDisturbance},
		{"own bridges", func() {
			if err := SyncBridges(t.Context(), nil, bridges, table.monitor); err != nil {
				t.Fatal(err)
			}
		}, NoDisturbance},
		{"several of each", func() {
			foreign()
			table.SetFrontend("it", clusterIP("10.96.0.10", 80, "TCP"))
			err := table.monitor.Own(func() error { foreign(); return table.nft.Run(t.Context(), table.nft.NewTransaction()) })
			if err != nil {
				t.Fatal(err)
			}
			mustCommit(t, table)
			foreign()
		}, NoDisturbance},
		{"another's table", foreign, NoDisturbance},
		{"a map flushed", func() {
			run(table.nft, func(tx *knftables.Transaction) { tx.Flush(&knftables.Map{Name: mapName(incoming, false, false)}) })
		}, Disturbed},
		{"a chain flushed", func() {
			run(table.nft, func(tx *knftables.Transaction) { tx.Flush(&knftables.Chain{Name: "lookup-" + incoming}) })
		}, Disturbed},
		{"a rule inserted", func() {
			run(table.nft, func(tx *knftables.Transaction) { tx.Insert(&knftables.Rule{Chain: "prerouting", Rule: "accept"}) })
		}, Disturbed},
		{"an own transaction beside another's", func() {
			table.SetFrontend("it", nil)
			mustCommit(t, table)
			run(table.nft, func(tx *knftables.Transaction) { tx.Flush(&knftables.Map{Name: markMap}) })
		}, Disturbed},
		{"the bridges' table deleted", func() {
			if err := removeBridge(t.Context()); err != nil {
				t.Fatal(err)
			}
		}, Disturbed},
		{"the table deleted", func() {
			run(table.nft, func(tx *knftables.Transaction) { tx.Delete(&knftables.Table{}) })
		}, Disturbed},
	} {
		step.do()
		if got := look(); got != step.want {
			t.Errorf("%s: %d, want %d", step.name, got, step.want)
		}
		table.Forget()
		mustCommit(t, table)
		look()
	}
}

// The numbers of transactions wrap around.
func TestTransactionsWrap(t *testing.T) {
	m := NewMonitor()
	m.own = []writes{{^uint32(0) - 1, 1}}
	m.note(0, true)
	if got := m.Look(); got != NoDisturbance {
		t.Errorf("an own transaction at the wrap: %d", got)
	}
	m.note(2, true)
	if got := m.Look(); got != Disturbed {
		t.Errorf("another's after the wrap: %d", got)
	}
}
