package node

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"runtime"
	"sync"
	"syscall"
	"testing"

	clusterpb "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/fairlead/fairlead/translate/envoy"
	"github.com/fairlead/fairlead/translate/frontendpb"
)

// fakeEnvoy stands for a proxy and the Envoy that it becomes: it has a namespace in which it listens as Envoy does, and takes
// resources, as fast as the test lets it.
type fakeEnvoy struct {
	t         *testing.T
	id        string // As of its bootstrap.
	namespace netns.NsHandle
	listeners []net.Listener

	gate sync.Mutex // Held while it does not answer.

	mu      sync.Mutex // Guards the following.
	has     map[string]bool
	removed func(name string) // Called before it answers that it has lost a resource.
}

// newFakeEnvoy makes the namespace, and the listeners in it.
func newFakeEnvoy(t *testing.T) *fakeEnvoy {
	t.Helper()
	e := &fakeEnvoy{t: t, has: map[string]bool{}, removed: func(string) {}}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // And never unlocked: the thread ends with the goroutine.
		var err error
		if e.namespace, err = netns.New(); err == nil {
			err = e.listen()
		}
		done <- err
	}()
	t.Cleanup(e.end)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	return e
}

// listen listens at the port of every class.
func (e *fakeEnvoy) listen() error {
	transparent := net.ListenConfig{Control: func(network, _ string, c syscall.RawConn) (err error) {
		level, option := unix.SOL_IP, unix.IP_TRANSPARENT
		if network == "tcp6" {
			level, option = unix.SOL_IPV6, unix.IPV6_TRANSPARENT
		}
		return errors.Join(c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, option, 1) }), err)
	}}
	for _, class := range frontendpb.Classes {
		for network, host := range map[string]net.IP{"tcp4": net.IPv4zero, "tcp6": net.IPv6zero} {
			at := net.TCPAddr{IP: host, Port: int(envoy.ListenerPort(class))}
			l, err := transparent.Listen(context.Background(), network, at.String())
			if err != nil {
				return err
			}
			e.listeners = append(e.listeners, l)
			go func() {
				for conn, err := l.Accept(); err == nil; conn, err = l.Accept() {
					conn.Close() // As Envoy does where the address is no Service's.
				}
			}()
		}
	}
	return nil
}

// end ends the Envoy and with it its namespace.
func (e *fakeEnvoy) end() {
	for _, l := range e.listeners {
		l.Close()
	}
	if e.namespace.IsOpen() {
		e.namespace.Close()
	}
}

// ask hands the namespace to the agent, as a proxy does.
func (e *fakeEnvoy) ask(runDir string) *net.UnixConn {
	e.t.Helper()
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: ProxySocket(runDir), Net: "unix"})
	if err == nil {
		_, _, err = conn.WriteMsgUnix([]byte{0}, unix.UnixRights(int(e.namespace)), nil)
	}
	if err != nil {
		e.t.Fatal(err)
	}
	return conn
}

// start waits for the bootstrap and then takes resources until the test ends, from one agent after the other.
func (e *fakeEnvoy) start(runDir string) {
	e.t.Helper()
	conn := e.ask(runDir)
	defer conn.Close()
	var reply struct {
		Bootstrap []byte
		Error     string
	}
	var bootstrap struct{ Node struct{ ID string } }
	err := json.NewDecoder(conn).Decode(&reply)
	if err == nil {
		err = json.Unmarshal(reply.Bootstrap, &bootstrap)
	}
	if err != nil || bootstrap.Node.ID == "" {
		e.t.Fatalf("no bootstrap: %v %s", err, reply.Error)
	}
	e.id = bootstrap.Node.ID
	xds, err := grpc.NewClient("unix:"+XDSSocket(runDir), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		e.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		for ctx.Err() == nil {
			if err := e.stream(ctx, xds); err != nil && ctx.Err() == nil && !errors.Is(err, io.EOF) {
				e.t.Logf("fake Envoy: %v", err)
			}
		}
	})
	e.t.Cleanup(func() {
		cancel()
		running.Wait()
		xds.Close()
	})
}

// stream takes resources on one stream until it ends.
func (e *fakeEnvoy) stream(ctx context.Context, conn *grpc.ClientConn) error {
	stream, err := discoverypb.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx, grpc.WaitForReady(true))
	if err != nil {
		return err
	}
	node := &corepb.Node{Id: e.id}
	for _, typeURL := range []string{envoy.ClusterType, envoy.ListenerType} {
		if err := stream.Send(&discoverypb.DeltaDiscoveryRequest{Node: node, TypeUrl: typeURL}); err != nil {
			return err
		}
	}
	for {
		response, err := stream.Recv()
		if err != nil {
			return err
		}
		assignments := e.take(response)
		e.gate.Lock()
		err = stream.Send(&discoverypb.DeltaDiscoveryRequest{TypeUrl: response.GetTypeUrl(), ResponseNonce: response.GetNonce()})
		e.gate.Unlock()
		if err == nil && len(assignments) > 0 {
			err = stream.Send(&discoverypb.DeltaDiscoveryRequest{TypeUrl: envoy.AssignmentType, ResourceNamesSubscribe: assignments})
		}
		if err != nil {
			return err
		}
	}
}

// take takes a response in and returns the assignments that its clusters need.
func (e *fakeEnvoy) take(response *discoverypb.DeltaDiscoveryResponse) (assignments []string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, name := range response.GetRemovedResources() {
		e.removed(name)
		delete(e.has, name)
	}
	for _, r := range response.GetResources() {
		e.has[r.GetName()] = true
		cluster := &clusterpb.Cluster{}
		if r.GetResource().UnmarshalTo(cluster) == nil {
			assignments = append(assignments, cluster.GetEdsClusterConfig().GetServiceName())
		}
	}
	return assignments
}

// knows reports whether the Envoy has a resource.
func (e *fakeEnvoy) knows(name string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.has[name]
}
