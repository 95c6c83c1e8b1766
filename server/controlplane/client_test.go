package controlplane

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/fairlead/fairlead/server/controlplane/status"
	"github.com/fairlead/fairlead/server/ops/telemetry"
	"github.com/fairlead/fairlead/server/source"
	"github.com/fairlead/fairlead/translate/envoy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// deadline is how long a test waits for what must come.
const deadline = 10 * time.Second

// controlPlane is a control plane that runs in the test.
type controlPlane struct {
	*Server
	t     testing.TB
	spans *tracetest.InMemoryExporter
	stop  func() error // Stops it and returns what Run returned.
}

// startServer runs a control plane with a source until the test ends.
func startServer(t testing.TB, source Source) *controlPlane {
	t.Helper()
	meters, metrics, err := telemetry.Metrics("v1.2.3", "abc")
	if err != nil {
		t.Fatal(err)
	}
	spans := tracetest.NewInMemoryExporter()
	s, err := New(Config{
		Source:  source,
		Listen:  "127.0.0.1:0",
		Admin:   "127.0.0.1:0",
		Traces:  sdktrace.NewTracerProvider(sdktrace.WithSyncer(spans)),
		Meters:  meters,
		Metrics: metrics,
		Log:     slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- s.Run(ctx) }()
	stopped := false
	c := &controlPlane{Server: s, t: t, spans: spans, stop: func() error {
		stopped = true
		cancel()
		return <-ran
	}}
	t.Cleanup(func() {
		if stopped {
			return
		}
		if err := c.stop(); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return c
}

// startDirectory runs a control plane on a folder with the given manifests, by file name.
func startDirectory(t *testing.T, manifests map[string]string) (c *controlPlane, folder string) {
	t.Helper()
	folder = t.TempDir()
	for name, content := range manifests {
		put(t, folder, name, content)
	}
	return startServer(t, source.NewDirectory(source.DirectoryConfig{Paths: []string{folder}, Log: slog.New(slog.DiscardHandler)})), folder
}

// put puts a complete manifest in its place.
func put(t *testing.T, folder, name, content string) {
	t.Helper()
	temporary := filepath.Join(folder, ".temporary")
	if err := os.WriteFile(temporary, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(temporary, filepath.Join(folder, name)); err != nil {
		t.Fatal(err)
	}
}

// get asks the admin address and returns the code and the body.
func (c *controlPlane) get(path string) (int, string) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), deadline)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+c.AdminAddr().String()+path, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	r.Close = true
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// status asks for the status over HTTP.
func (c *controlPlane) status() status.Status {
	c.t.Helper()
	_, body := c.get("/debug/status")
	var now status.Status
	if err := json.Unmarshal([]byte(body), &now); err != nil {
		c.t.Fatalf("status %s: %v", body, err)
	}
	return now
}

// eventually asks until a condition holds. What it asks for has no other way to tell that it changed.
func (c *controlPlane) eventually(what string, condition func() bool) {
	c.t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(deadline); !condition(); <-tick.C {
		if time.Now().After(end) {
			_, body := c.get("/debug/status")
			c.t.Fatalf("not so after %s: %s; status %s", deadline, what, body)
		}
	}
}

// node is a client that subscribes to what a node's agent subscribes to.
type node struct {
	t         testing.TB
	stream    grpc.BidiStreamingClient[discoverypb.DeltaDiscoveryRequest, discoverypb.DeltaDiscoveryResponse]
	responses chan *discoverypb.DeltaDiscoveryResponse
	ended     chan error // What the stream ended with.

	have map[string]map[string]*discoverypb.Resource // By type, then name.
	log  []string                                    // What came, such as "Cluster + 10.96.0.1:80".
}

// connect opens a node's stream once the control plane serves.
func (c *controlPlane) connect(name string) *node { return c.connectTo(name, status.NodeTypes...) }

// connectTo opens a stream that subscribes to everything of the given types.
func (c *controlPlane) connectTo(name string, types ...string) *node {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), deadline)
	defer cancel()
	addr, err := c.Addr(ctx)
	if err != nil {
		c.t.Fatalf("the control plane does not serve: %v", err)
	}
	conn, err := grpc.NewClient(addr.String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		c.t.Fatal(err)
	}
	streaming, stop := context.WithCancel(c.t.Context())
	stream, err := discoverypb.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(streaming)
	if err != nil {
		c.t.Fatal(err)
	}
	n := &node{
		t:         c.t,
		stream:    stream,
		responses: make(chan *discoverypb.DeltaDiscoveryResponse, 100),
		ended:     make(chan error, 1),
		have:      map[string]map[string]*discoverypb.Resource{},
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			r, err := stream.Recv()
			if err != nil {
				n.ended <- err
				return
			}
			n.responses <- r
		}
	}()
	c.t.Cleanup(func() {
		stop()
		<-done
		_ = conn.Close()
	})
	for _, t := range types {
		n.send(&discoverypb.DeltaDiscoveryRequest{Node: &corepb.Node{Id: name}, TypeUrl: t, ResourceNamesSubscribe: []string{"*"}})
	}
	return n
}

func (n *node) send(r *discoverypb.DeltaDiscoveryRequest) {
	n.t.Helper()
	if err := n.stream.Send(r); err != nil {
		n.t.Fatal(err)
	}
}

// until takes responses, and acknowledges each, until a condition holds.
func (n *node) until(what string, condition func() bool) {
	n.t.Helper()
	for !condition() {
		n.ack(n.take(what))
	}
}

// take takes the next response.
func (n *node) take(what string) *discoverypb.DeltaDiscoveryResponse {
	n.t.Helper()
	select {
	case r := <-n.responses:
		n.note(r)
		return r
	case err := <-n.ended:
		n.t.Fatalf("waiting until %s: the stream ended: %v", what, err)
	case <-time.After(deadline):
		n.t.Fatalf("waiting until %s: nothing comes; got %q", what, n.log)
	}
	return nil
}

func (n *node) note(r *discoverypb.DeltaDiscoveryResponse) {
	kind := status.TypeNames[r.GetTypeUrl()]
	if n.have[r.GetTypeUrl()] == nil {
		n.have[r.GetTypeUrl()] = map[string]*discoverypb.Resource{}
	}
	for _, resource := range r.GetResources() {
		n.have[r.GetTypeUrl()][resource.GetName()] = resource
		n.log = append(n.log, fmt.Sprintf("%s + %s", kind, resource.GetName()))
	}
	for _, name := range r.GetRemovedResources() {
		delete(n.have[r.GetTypeUrl()], name)
		n.log = append(n.log, fmt.Sprintf("%s - %s", kind, name))
	}
}

func (n *node) ack(r *discoverypb.DeltaDiscoveryResponse) {
	n.t.Helper()
	n.send(&discoverypb.DeltaDiscoveryRequest{TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce()})
}

// has returns a condition: there are so many resources of each type.
func (n *node) has(clusters, assignments, frontends, nodes int) func() bool {
	return func() bool {
		return len(n.have[envoy.ClusterType]) == clusters && len(n.have[envoy.AssignmentType]) == assignments &&
			len(n.have[envoy.FrontendType]) == frontends && len(n.have[envoy.NodeType]) == nodes
	}
}
