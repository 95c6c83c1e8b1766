package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"

	"github.com/fairlead/fairlead/cache"
	"github.com/fairlead/fairlead/server/node/envoyns"
	"github.com/fairlead/fairlead/server/xds"
	"github.com/fairlead/fairlead/translate/envoy"
	"github.com/fairlead/fairlead/translate/frontendpb"
	"github.com/fairlead/fairlead/translate/model"
)

// loop is an agent between a control plane and Envoys that the test plays, on the kernel's nftables.
type loop struct {
	t       *testing.T
	dir     string
	control *cache.Cache
	address string
	servers string // The control plane that the next agent is told of; empty: the address.
	agent   *Agent
	stop    func() // Ends the agent.
}

// fixed is a unit that all nodes see alike.
type fixed []cache.Resource

func (f fixed) Variant(model.View) string                  { return "" }
func (f fixed) Resources(string) ([]cache.Resource, error) { return f, nil }

// newLoop starts a control plane and an agent. While a file named broken is in the folder, every run of nft fails.
func newLoop(t *testing.T) *loop {
	t.Helper()
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		t.Fatal(err)
	}
	l := &loop{t: t, dir: t.TempDir(), control: cache.New(cache.Config{})}
	nft, err := exec.LookPath("nft")
	if err != nil {
		t.Fatal(err)
	}
	shim := fmt.Sprintf("#!/bin/sh\n[ -e %s/broken ] && { echo broken by the test >&2; exit 1; }\nexec %s \"$@\"\n", l.dir, nft)
	if err := os.WriteFile(filepath.Join(l.dir, "nft"), []byte(shim), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", l.dir+":"+os.Getenv("PATH"))
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.address = listener.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- xds.New(xds.Config{Cache: l.control}).Serve(ctx, listener) }()
	node := l.resource(envoy.NodeType, "n1", &frontendpb.Node{Addresses: [][]byte{{172, 30, 0, 1}}, PodCidrs: []string{"10.244.1.0/24"}})
	l.publish("node", fixed{node})
	l.start()
	t.Cleanup(func() {
		l.stop()
		cancel()
		if err := errors.Join(<-ended, Cleanup(context.Background(), l.config())); err != nil {
			t.Error(err)
		}
	})
	return l
}

func (l *loop) config() Config {
	return Config{
		Node: "n1", Servers: []string{cmp.Or(l.servers, l.address)}, DialOptions: []grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())},
		StateDir: filepath.Join(l.dir, "state"), RunDir: l.runDir(), EnvoyNS: envoyns.DefaultConfig(), Log: slog.New(slog.DiscardHandler),
	}
}

func (l *loop) runDir() string { return filepath.Join(l.dir, "run") }

// start starts an agent.
func (l *loop) start() {
	l.t.Helper()
	var err error
	if l.agent, err = New(l.config()); err != nil {
		l.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func(a *Agent) { ended <- a.Run(ctx) }(l.agent)
	l.stop = func() {
		cancel()
		if err := <-ended; err != nil {
			l.t.Error(err)
		}
		l.stop = func() {}
	}
	l.eventually("the agent listens", func() bool {
		_, err := os.Stat(XDSSocket(l.runDir()))
		return err == nil
	})
}

func (l *loop) resource(typeURL, name string, m proto.Message) cache.Resource {
	l.t.Helper()
	r, err := cache.NewResource(typeURL, name, m)
	if err != nil {
		l.t.Fatal(err)
	}
	return r
}

// publish publishes a unit, or with nil its removal, and returns the publish's number.
func (l *loop) publish(id string, unit cache.Contribution) uint64 {
	return l.control.Publish(cache.Update{Contributions: map[string]cache.Contribution{id: unit}})
}

// service publishes a Service at 10.96.0.N:80 with one endpoint.
func (l *loop) service(n byte) uint64 {
	l.t.Helper()
	set := &model.EndpointSet{Name: fmt.Sprintf("default/s%d:/TCP", n), Endpoints: []model.Endpoint{{AddrPort: netip.MustParseAddrPort("10.244.2.2:80")}}}
	route := model.Route{Verdict: model.Forward, Set: set}
	f := model.Frontend{
		Address: netip.AddrFrom4([4]byte{10, 96, 0, n}), Family: model.IPv4, Port: 80, Protocol: model.TCP, Kind: model.ClusterIP,
		Routes: [model.Origins]model.Route{route, route, route},
	}
	var unit fixed
	for _, r := range envoy.Resources([]model.Frontend{f}) {
		unit = append(unit, l.resource(r.TypeURL, r.Name, r.Message))
	}
	return l.publish(f.Name(), unit)
}

// forwarded reports whether the kernel's table has 10.96.0.N:80.
func (l *loop) forwarded(n byte) bool {
	out, err := exec.Command("nft", "list", "map", "inet", "fairlead", "frontends4").CombinedOutput()
	return err == nil && strings.Contains(string(out), fmt.Sprintf("10.96.0.%d . tcp . 80", n))
}

// reported returns what the control plane was told of the node.
func (l *loop) reported() frontendpb.Report {
	for _, s := range l.control.Status() {
		return frontendpb.ReportOf(s.Client)
	}
	return frontendpb.Report{}
}

// acknowledged reports whether the agent has sent the control plane an ACK of what it published.
func (l *loop) acknowledged(seq uint64) bool {
	return l.control.Applied("n1", envoy.FrontendType) >= seq
}

func (l *loop) eventually(what string, condition func() bool) {
	l.t.Helper()
	deadline := time.After(30 * time.Second)
	poll := time.NewTicker(2 * time.Millisecond)
	defer poll.Stop()
	for !condition() {
		select {
		case <-deadline:
			l.t.Fatalf("not in time: %s; status %+v", what, l.agent.Status())
		case <-poll.C:
		}
	}
}

// breakNFT makes nft fail or work.
func (l *loop) breakNFT(broken bool) {
	l.t.Helper()
	path := filepath.Join(l.dir, "broken")
	err := os.Remove(path)
	if broken {
		err = os.WriteFile(path, nil, 0o600)
	}
	if err != nil {
		l.t.Fatal(err)
	}
}

// Envoy comes first for what is added and the kernel for what is removed; what the kernel does not take is not acknowledged, but
// tried until it does; and an agent that starts anew goes on where the last one was.
func TestLoop(t *testing.T) {
	l := newLoop(t)
	l.eventually("the control plane knows that the node has no Envoy", func() bool { return strings.Contains(l.reported().NotReady, "no Envoy is ready") })
	e := newFakeEnvoy(t)
	e.start(l.runDir())
	first := l.service(1)
	l.eventually("the first Service is forwarded", func() bool { return l.acknowledged(first) && l.forwarded(1) })
	l.eventually("the Envoy is the current one", func() bool { return l.agent.Status().Current == 1 })
	l.eventually("the control plane knows that the node is ready", func() bool { return l.reported().NotReady == "" && !l.reported().Since.IsZero() })

	e.gate.Lock()
	second := l.service(2)
	l.eventually("Envoy is sent the cluster", func() bool { return e.knows("10.96.0.2:80") })
	if l.forwarded(2) || l.acknowledged(second) {
		t.Error("the kernel sends traffic to a cluster that Envoy has not acknowledged")
	}
	e.gate.Unlock()
	l.eventually("the second Service is forwarded", func() bool { return l.acknowledged(second) && l.forwarded(2) })

	e.mu.Lock()
	tooEarly := make(chan string, 10)
	e.removed = func(name string) {
		if l.forwarded(2) {
			tooEarly <- name
		}
	}
	e.mu.Unlock()
	gone := l.publish("10.96.0.2:80/TCP", nil)
	l.eventually("the second Service is gone", func() bool { return l.acknowledged(gone) && !e.knows("10.96.0.2:80") })
	if len(tooEarly) > 0 {
		t.Errorf("Envoy lost %s while the kernel led to it", <-tooEarly)
	}

	l.breakNFT(true)
	third := l.service(3)
	l.eventually("the agent says that nft fails", func() bool { return strings.Contains(l.agent.Status().Error, "broken by the test") })
	l.eventually("the control plane knows that, too", func() bool { return strings.Contains(l.reported().NotReady, "broken by the test") })
	if s := l.agent.Status(); s.Programmed || l.acknowledged(third) {
		t.Errorf("what the kernel does not have counts as programmed: %+v", s)
	}
	l.stop()
	l.breakNFT(false)
	if !l.forwarded(1) {
		t.Error("the first Service went with the agent")
	}
	l.start()
	l.eventually("the third Service is forwarded after the restart", func() bool { return l.acknowledged(third) && l.forwarded(3) && l.forwarded(1) })
	if s := l.agent.Status(); s.Current != 1 || !slices.Equal(s.Generations, []envoyns.ID{1}) || !s.Programmed {
		t.Errorf("after the restart: %+v", s)
	}
}

// nft runs the nft command in place of another program of the node.
func (l *loop) nft(args ...string) {
	l.t.Helper()
	if out, err := exec.Command("nft", args...).CombinedOutput(); err != nil {
		l.t.Fatalf("nft %v: %v\n%s", args, err, out)
	}
}

// soon waits for a repair, which takes some hundred milliseconds on an idle machine. One that waits for the control plane and
// Envoy's acknowledgement, or for the next comparison, takes more than 10 s in these tests.
func (l *loop) soon(what string, condition func() bool) {
	l.t.Helper()
	start := time.Now()
	l.eventually(what, condition)
	if took := time.Since(start); took > 8*time.Second {
		l.t.Errorf("%s after %s", what, took)
	}
}

// What other programs take from the table is put back, once for each time; and so it is by an agent that starts, before Envoy or
// a control plane has said a word.
func TestTablePutBack(t *testing.T) {
	l := newLoop(t)
	e := newFakeEnvoy(t)
	e.start(l.runDir())
	served := l.service(1)
	l.eventually("the Service is forwarded", func() bool { return l.acknowledged(served) && l.agent.Status().Current == 1 && l.forwarded(1) })
	l.nft("flush", "map", "inet", "fairlead", "frontends4")
	l.soon("the elements are put back", func() bool { return l.forwarded(1) })
	l.nft("flush", "chain", "inet", "fairlead", "lookup-frontends")
	rules := func() bool {
		out, err := exec.Command("nft", "list", "chain", "inet", "fairlead", "lookup-frontends").CombinedOutput()
		return err == nil && strings.Contains(string(out), "vmap @frontends4")
	}
	l.soon("the chain is filled again", rules)

	l.eventually("the state is on the disk", func() bool {
		state, err := os.ReadFile(statePath(l.config().StateDir))
		return err == nil && strings.Contains(string(state), "10.96.0.1:80/TCP")
	})
	l.stop()
	e.gate.Lock() // Envoy acknowledges nothing.
	defer e.gate.Unlock()
	l.nft("flush", "map", "inet", "fairlead", "frontends4")
	l.nft("flush", "chain", "inet", "fairlead", "lookup-frontends")
	l.servers = "127.0.0.1:1" // Nobody listens there.
	l.start()
	l.soon("an agent that starts puts it back", func() bool { return l.forwarded(1) && rules() })
}

// An agent that starts beside an intact table leaves it as it is: it may be newer than the state on disk.
func TestNewerTableStays(t *testing.T) {
	l := newLoop(t)
	e := newFakeEnvoy(t)
	e.start(l.runDir())
	served := l.service(1)
	l.eventually("the Service is forwarded", func() bool { return l.acknowledged(served) && l.agent.Status().Current == 1 && l.forwarded(1) })
	l.eventually("the state is on the disk", func() bool {
		state, err := os.ReadFile(statePath(l.config().StateDir))
		return err == nil && strings.Contains(string(state), "10.96.0.1:80/TCP")
	})
	l.stop()
	l.nft("add", "element", "inet", "fairlead", "frontends4", "{ 10.96.0.2 . tcp . 80 : goto refuse }")
	e.gate.Lock()
	l.servers = "127.0.0.1:1"
	l.start()
	l.eventually("the agent waits for a control plane", func() bool { return l.agent.Status().Current == 1 })
	if !l.forwarded(2) {
		t.Error("the table of the agent before was replaced at once")
	}
	e.gate.Unlock()
	l.eventually("no control plane answers, and the state on disk counts", func() bool { return !l.forwarded(2) && l.forwarded(1) })
}

// What was built for a proxy that hung up goes; another Envoy that starts takes over.
func TestProxyHangsUp(t *testing.T) {
	l := newLoop(t)
	leaves := newFakeEnvoy(t)
	if err := leaves.ask(l.runDir()).Close(); err != nil {
		t.Fatal(err)
	}
	stays := newFakeEnvoy(t) // The agent answers one proxy after the other.
	stays.start(l.runDir())
	served := l.service(1)
	l.eventually("the other Envoy is the current one", func() bool { return l.acknowledged(served) && l.agent.Status().Current != 0 })
	if s := l.agent.Status(); len(s.Generations) != 1 {
		t.Errorf("generations %v; want one, though the namespace of the first is still there", s.Generations)
	}
}
