package identity

import (
	"bytes"
	"context"
	"crypto"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"github.com/fairlead/fairlead/cache"
	"github.com/fairlead/fairlead/server/xds"
	"github.com/fairlead/fairlead/translate/frontendpb"
	"github.com/fairlead/fairlead/translate/model"
)

// logBuffer is a log that a test reads while it is written.
type logBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

// Write adds to the log.
func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

// lines returns the lines that have all of the words.
func (l *logBuffer) lines(words ...string) (found []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(l.text.String()) {
		all := true
		for _, w := range words {
			all = all && strings.Contains(line, w)
		}
		if all {
			found = append(found, line)
		}
	}
	return found
}

func (l *logBuffer) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

// frontend is a Service with one frontend, the same for all nodes.
type frontend struct{ resource cache.Resource }

func (f frontend) Variant(model.View) string { return "" }
func (f frontend) Resources(string) ([]cache.Resource, error) {
	return []cache.Resource{f.resource}, nil
}

// control is a control plane that proves itself and has its clients prove themselves.
type control struct {
	*cache.Cache
	address string
	log     *logBuffer
	stop    func()
}

// serve starts a control plane on loopback.
func serve(t testing.TB, certificates *Certificates, authenticator *Authenticator) *control {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &control{Cache: cache.New(cache.Config{}), address: listener.Addr().String(), log: &logBuffer{}}
	c.publish(t, 80)
	server := xds.New(xds.Config{
		Cache: c.Cache, Log: c.log.logger(), Credentials: certificates.Credentials(),
		Authenticate: func(ctx context.Context) (xds.Client, error) {
			who, err := authenticator.Authenticate(ctx)
			return xds.Client{Identity: who.Name, Until: who.Expires}, err
		},
		Authorize: authenticator.Authorize,
	})
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx, listener) }()
	c.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(c.stop)
	return c
}

// publish publishes the one frontend with a port.
func (c *control) publish(t testing.TB, port uint32) {
	t.Helper()
	r, err := cache.NewResource(cache.FrontendType, "10.96.0.1:80/TCP", &frontendpb.Frontend{Port: port, Protocol: "TCP"})
	if err != nil {
		t.Fatal(err)
	}
	c.Publish(cache.Update{Contributions: map[string]cache.Contribution{"default/web": frontend{r}}})
}

// folder returns the files of a pair that a new CA has signed, as cert-manager would mount them.
func folder(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	write(t, dir, newFiles(t, time.Now(), DefaultServerName))
	return dir
}

// newFiles returns the content of a folder: a pair for the names, issued at a time, and its new CA.
func newFiles(t testing.TB, issued time.Time, names ...string) map[string][]byte {
	t.Helper()
	ca, err := newSigner(issued)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := ca.issue(names, issued)
	if err != nil {
		t.Fatal(err)
	}
	key, err := encodeKey(pair.PrivateKey.(crypto.Signer))
	if err != nil {
		t.Fatal(err)
	}
	return map[string][]byte{certFile: encodeCert(pair.Leaf), keyFile: key, caFile: encodeCert(ca.cert)}
}

func write(t testing.TB, dir string, files map[string][]byte) {
	t.Helper()
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// fromFiles returns the certificates of a folder, which are renewed until the test ends.
func fromFiles(t testing.TB, dir string, log *logBuffer) *Certificates {
	t.Helper()
	c, err := FromFiles(dir, log.logger())
	if err != nil {
		t.Fatal(err)
	}
	run(t, c)
	return c
}

func run(t testing.TB, c *Certificates) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// dial connects to a control plane whose CA is in a file, with a token if there is one.
func dial(t testing.TB, address, ca, token string) *grpc.ClientConn {
	t.Helper()
	options := []grpc.DialOption{grpc.WithTransportCredentials(ClientConfig{CAFile: ca, ServerName: DefaultServerName}.transport())}
	if token != "" {
		file := filepath.Join(t.TempDir(), "token")
		if err := os.WriteFile(file, []byte(token+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		var err error
		options, err = ClientConfig{CAFile: ca, ServerName: DefaultServerName, TokenFile: file}.DialOptions()
		if err != nil {
			t.Fatal(err)
		}
	}
	conn, err := grpc.NewClient(address, options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// agent is a delta ADS stream that a test follows.
type agent struct {
	ads discoverypb.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
}

// newAgent returns a stream that follows all frontends.
func newAgent(t testing.TB, conn *grpc.ClientConn, id string) agent {
	t.Helper()
	a := open(t, conn)
	a.send(t, &discoverypb.DeltaDiscoveryRequest{
		Node: node(id), TypeUrl: cache.FrontendType, ResourceNamesSubscribe: []string{"*"},
	})
	return a
}

// open returns a stream on which nothing has been said.
func open(t testing.TB, conn *grpc.ClientConn) agent {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*deadline)
	t.Cleanup(cancel)
	ads, err := discoverypb.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return agent{ads}
}

func node(id string) *corepb.Node { return &corepb.Node{Id: id} }

func (a agent) send(t testing.TB, m *discoverypb.DeltaDiscoveryRequest) {
	t.Helper()
	if err := a.ads.Send(m); err != nil && !errors.Is(err, io.EOF) { // Recv says why a stream is over.
		t.Fatal(err)
	}
}

// take waits for the frontend with a port, and acknowledges it.
func (a agent) take(t testing.TB, port uint32) {
	t.Helper()
	m, err := a.ads.Recv()
	if err != nil {
		t.Fatal(err)
	}
	got := &frontendpb.Frontend{}
	if err := m.GetResources()[0].GetResource().UnmarshalTo(got); err != nil || got.GetPort() != port {
		t.Fatalf("got %v (%v), want port %d", got, err, port)
	}
	a.send(t, &discoverypb.DeltaDiscoveryRequest{TypeUrl: cache.FrontendType, ResponseNonce: m.GetNonce()})
}

// rpc is one of the RPCs that a control plane offers.
type rpc struct {
	method string
	stream grpc.StreamDesc
}

// call sends a first request and returns what the RPC ends with, or nil if it answers.
func (r rpc) call(conn *grpc.ClientConn, authorization, id, typeURL string) error {
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	if authorization != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, authorizationHeader, authorization)
	}
	s, err := conn.NewStream(ctx, &r.stream, r.method)
	if err != nil {
		return err
	}
	var request, response proto.Message = &discoverypb.DiscoveryRequest{Node: node(id), TypeUrl: typeURL}, &discoverypb.DiscoveryResponse{}
	if strings.Contains(r.method, "/Delta") {
		request = &discoverypb.DeltaDiscoveryRequest{Node: node(id), TypeUrl: typeURL, ResourceNamesSubscribe: []string{"*"}}
		response = &discoverypb.DeltaDiscoveryResponse{}
	}
	if err := s.SendMsg(request); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if !r.stream.ClientStreams {
		s.CloseSend()
	}
	return s.RecvMsg(response)
}

// String returns the RPC's name.
func (r rpc) String() string { return r.method[strings.LastIndex(r.method, "/")+1:] }
