package upstream

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

// A reconnect resumes from what the node acknowledged. What was only received is asked for again, and neither given to
// the node nor acknowledged on the new stream.
func TestReconnectResumesFromAcknowledged(t *testing.T) {
	plane := newControlPlane(t)
	node := start(t, Config{Addresses: []string{plane.address}})
	stream := plane.accept(t)
	stream.subscribed(2)
	stream.send(clusters, "1", []string{"a", "1", "b", "1"})
	node.Ack(node.update(t, clusters, "+a=1 +b=1"))
	stream.wantReply(clusters, "1", "")
	stream.send(clusters, "2", []string{"a", "2"}, "b")
	stream.send(frontends, "3", []string{"f", "1"})
	eventually(t, "both received", func() bool {
		return node.status(clusters).Responses == 2 && node.status(frontends).Responses == 1
	})

	stream.end <- errors.New("restart")
	stream = plane.accept(t)
	first := stream.subscribed(2)
	wantVersions(t, first[clusters], "a", "1", "b", "1")
	wantVersions(t, first[frontends])
	stream.send(clusters, "1", []string{"a", "3"})
	node.Ack(node.update(t, clusters, "+a=3"))
	stream.wantReply(clusters, "1", "")
	if got := node.Status().Streams; got != 2 {
		t.Errorf("%d streams, want 2", got)
	}
}

// An update that is with the node when the stream breaks is finished first: only then is it certain which versions the
// node has. Its ACK makes them known and sends nothing, since the new stream never brought it.
func TestUpdateInProgressAcrossReconnect(t *testing.T) {
	plane := newControlPlane(t)
	node := start(t, Config{Addresses: []string{plane.address}})
	stream := plane.accept(t)
	stream.subscribed(2)
	stream.send(clusters, "1", []string{"a", "1"})
	working := node.update(t, clusters, "+a=1")

	stream.end <- errors.New("restart")
	stream = plane.accept(t)
	if _, ok := stream.subscribed(1)[frontends]; !ok {
		t.Fatal("the type without an update in progress has to be subscribed at once")
	}
	stream.send(frontends, "1", []string{"f", "1"})
	node.Ack(node.update(t, frontends, "+f=1"))
	stream.wantReply(frontends, "1", "") // Nothing was sent about clusters until here.
	node.Ack(working)
	wantVersions(t, stream.subscribed(1)[clusters], "a", "1")
	stream.send(clusters, "2", nil, "a") // It had been removed meanwhile.
	node.Ack(node.update(t, clusters, "-a"))
	stream.wantReply(clusters, "2", "")
}

// A refusal of a stale update sends nothing either.
func TestStaleNack(t *testing.T) {
	plane := newControlPlane(t)
	node := start(t, Config{Addresses: []string{plane.address}, Types: []string{clusters}})
	stream := plane.accept(t)
	stream.subscribed(1)
	stream.send(clusters, "1", []string{"a", "1"})
	working := node.update(t, clusters, "+a=1")
	stream.end <- errors.New("restart")
	stream = plane.accept(t)
	node.Nack(working, errors.New("no"))
	wantVersions(t, stream.subscribed(1)[clusters], "a", "")
}

// When a control plane does not answer the next one is tried at once.
func TestNextAddress(t *testing.T) {
	var pauses ceilings
	plane := newControlPlane(t)
	addresses := []string{closedPort(t), closedPort(t), closedPort(t), plane.address}
	node := start(t, Config{Addresses: addresses}, pauses.record)
	plane.accept(t).subscribed(2)
	if got := pauses.all(); len(got) != 0 {
		t.Errorf("paused %v before all addresses were tried", got)
	}
	if got := node.Status(); got.Address != plane.address || !got.Connected || got.Since.IsZero() {
		t.Errorf("status = %+v, want connected to %s", got, plane.address)
	}
}

// When a control plane that was of use stops, another is asked first, after a pause: all its clients do this at once.
// What the one sent counts at the other.
func TestOtherAddress(t *testing.T) {
	var pauses ceilings
	planes := []*controlPlane{newControlPlane(t), newControlPlane(t)}
	node := start(t, Config{Addresses: []string{planes[0].address, planes[1].address}}, pauses.record)
	eventually(t, "connected", func() bool { return node.Status().Connected })
	at := 0
	if node.Status().Address == planes[1].address {
		at = 1
	}
	stream := planes[at].accept(t)
	stream.subscribed(2)
	stream.send(clusters, "1", []string{"a", "1"})
	node.Ack(node.update(t, clusters, "+a=1"))
	stream.wantReply(clusters, "1", "")
	for moves := 1; moves <= 8; moves++ {
		stream.end <- errors.New("restart")
		at = 1 - at
		stream = planes[at].accept(t)
		wantVersions(t, stream.subscribed(2)[clusters], "a", "1")
		if got := pauses.all(); len(got) != moves {
			t.Fatalf("after %d moves paused %v", moves, got)
		}
		stream.send(clusters, "1", nil)
		node.Ack(node.update(t, clusters, ""))
		stream.wantReply(clusters, "1", "")
	}
}

// The ceiling of the pauses doubles while no stream is of use, has a maximum, and starts again after one that was.
// A server that opens streams only to refuse them is of no use.
func TestBackoff(t *testing.T) {
	plane := newControlPlane(t)
	var pauses ceilings
	node := start(t, Config{Addresses: []string{plane.address}}, pauses.record)
	refusal := status.Error(codes.PermissionDenied, "token is of another node")
	for range 7 {
		plane.accept(t).end <- refusal
	}
	stream := plane.accept(t)
	if got := node.Status().LastError; !strings.Contains(got, "token is of another node") {
		t.Errorf("last error = %q, want the server's reason", got)
	}
	stream.subscribed(2)
	stream.send(clusters, "1", nil)
	node.Ack(node.update(t, clusters, ""))
	stream.wantReply(clusters, "1", "")
	stream.end <- errors.New("restart")
	plane.accept(t).end <- refusal
	plane.accept(t)

	want := []time.Duration{1, 2, 4, 8, 16, 30, 30, 1, 2} // In half seconds.
	for i := range want {
		want[i] *= baseBackoff
	}
	if got := pauses.all(); !slices.Equal(got, want) {
		t.Errorf("ceilings = %v, want %v", got, want)
	}
}

// A pause is random below its ceiling, and ends with the context.
func TestWait(t *testing.T) {
	begin := time.Now()
	for range 20 {
		wait(t.Context(), time.Millisecond)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	wait(ended, time.Hour)
	if took := time.Since(begin); took > deadline {
		t.Errorf("took %v", took)
	}
}

// Every address is tried, in changing order, the one that failed last at the end.
func TestOrder(t *testing.T) {
	addresses := []string{"a", "b", "c"}
	seen := map[string]bool{}
	for range 200 {
		seen[strings.Join(order(addresses, ""), "")] = true
		got := order(addresses, "a")
		if got[2] != "a" || len(got) != 3 || !slices.Contains(got, "b") || !slices.Contains(got, "c") {
			t.Fatalf("order = %v, want a at the end", got)
		}
	}
	if len(seen) != 6 { // (5/6)^200: never by chance.
		t.Errorf("%d of 6 orders seen", len(seen))
	}
	if !slices.Equal(addresses, []string{"a", "b", "c"}) {
		t.Errorf("the configured addresses were changed: %v", addresses)
	}
}

// Run ends in any phase, and nothing is left behind.
func TestStop(t *testing.T) {
	t.Run("no control plane", func(t *testing.T) {
		reached := make(chan struct{})
		var once sync.Once
		node := start(t, Config{Addresses: []string{closedPort(t)}}, func(c *Client) {
			c.wait = func(ctx context.Context, _ time.Duration) {
				once.Do(func() { close(reached) })
				wait(ctx, time.Hour)
			}
		})
		take(t, reached)
		if err := node.stop(); err != nil {
			t.Error(err)
		}
	})
	t.Run("update not taken", func(t *testing.T) {
		plane := newControlPlane(t)
		node := start(t, Config{Addresses: []string{plane.address}})
		stream := plane.accept(t)
		stream.subscribed(2)
		stream.send(clusters, "1", []string{"a", "1"})
		eventually(t, "received", func() bool { return node.status(clusters).Responses == 1 })
		if err := node.stop(); err != nil {
			t.Error(err)
		}
	})
}

func TestConfigErrors(t *testing.T) {
	secure := []grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())}
	for want, config := range map[string]Config{
		"no node name":             {Addresses: []string{"x:1"}, Types: []string{clusters}, DialOptions: secure},
		"no resource types":        {Node: "n", Addresses: []string{"x:1"}, DialOptions: secure},
		`control plane "x:1"`:      {Node: "n", Addresses: []string{"x:1"}, Types: []string{clusters}},
		`control plane "x" is not`: {Node: "n", Addresses: []string{"x"}, Types: []string{clusters}, DialOptions: secure},
	} {
		if _, err := New(config); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("New: %v, want an error with %q", err, want)
		}
	}
}

// ceilings records the pauses of a client and makes them short.
type ceilings struct {
	mu   sync.Mutex
	list []time.Duration
}

func (p *ceilings) record(c *Client) {
	c.wait = func(_ context.Context, ceiling time.Duration) {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.list = append(p.list, ceiling)
	}
}

func (p *ceilings) all() []time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.list)
}

// closedPort returns an address on loopback at which nothing listens.
func closedPort(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	return listener.Addr().String()
}
