package controlplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointpb "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	tracenoop "go.opentelemetry.io/otel/trace/noop"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"

	"github.com/fairlead/fairlead/server/controlplane/status"
	"github.com/fairlead/fairlead/server/source"
	"github.com/fairlead/fairlead/translate/envoy"
	"github.com/fairlead/fairlead/translate/frontendpb"
	"github.com/fairlead/fairlead/translate/model"
)

// The address plan: Services in 10.96.0.0/16, pods in 10.244.0.0/16, nodes in 172.30.0.0/24.

func serviceManifest(name, clusterIP string) string {
	return fmt.Sprintf(`apiVersion: v1
kind: Service
metadata: {name: %s, namespace: default}
spec:
  clusterIP: %s
  ports: [{name: http, port: 80, targetPort: 8080}]
`, name, clusterIP)
}

func sliceManifest(service string, addresses ...string) string {
	s := fmt.Sprintf(`apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: %s-1, namespace: default, labels: {kubernetes.io/service-name: %s}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints:
`, service, service)
	for _, a := range addresses {
		s += fmt.Sprintf("- {addresses: [%s], nodeName: n1, conditions: {ready: true}}\n", a)
	}
	return s
}

func nodeManifest(name, address string) string {
	return fmt.Sprintf(`apiVersion: v1
kind: Node
metadata: {name: %s, labels: {topology.kubernetes.io/zone: zone-a}}
spec: {podCIDRs: [10.244.1.0/24]}
status: {addresses: [{type: InternalIP, address: %s}]}
`, name, address)
}

// twoServices is a small cluster: web with two endpoints, api with one.
func twoServices() map[string]string {
	return map[string]string{
		"web.yaml":       serviceManifest("web", "10.96.0.1"),
		"web-slice.yaml": sliceManifest("web", "10.244.1.1", "10.244.1.2"),
		"api.yaml":       serviceManifest("api", "10.96.0.2"),
		"api-slice.yaml": sliceManifest("api", "10.244.1.9"),
		"nodes.yaml":     nodeManifest("n1", "172.30.0.1") + "---\n" + nodeManifest("n2", "172.30.0.2"),
	}
}

// endpoints returns the addresses in an assignment that a node has.
func (n *node) endpoints(name string) []string {
	n.t.Helper()
	resource := n.have[envoy.AssignmentType][name]
	if resource == nil {
		return nil
	}
	var cla endpointpb.ClusterLoadAssignment
	if err := resource.GetResource().UnmarshalTo(&cla); err != nil {
		n.t.Fatal(err)
	}
	var addresses []string
	for _, locality := range cla.GetEndpoints() {
		for _, e := range locality.GetLbEndpoints() {
			a := e.GetEndpoint().GetAddress().GetSocketAddress()
			addresses = append(addresses, fmt.Sprintf("%s:%d", a.GetAddress(), a.GetPortValue()))
		}
	}
	return addresses
}

func TestManifestsReachANode(t *testing.T) {
	c, _ := startDirectory(t, twoServices())
	n1 := c.connect("n1")
	n1.until("everything is there", n1.has(2, 2, 2, 1))

	if diff := cmp.Diff([]string{"10.244.1.1:8080", "10.244.1.2:8080"}, n1.endpoints("default/web:http/TCP")); diff != "" {
		t.Errorf("endpoints (-want +got):\n%s", diff)
	}
	if n1.have[envoy.ClusterType]["10.96.0.1:80"] == nil || n1.have[envoy.FrontendType]["10.96.0.1:80/TCP"] == nil {
		t.Errorf("no cluster or frontend of web: %q", n1.log)
	}
	var self frontendpb.Node
	if err := n1.have[envoy.NodeType]["n1"].GetResource().UnmarshalTo(&self); err != nil {
		t.Fatal(err)
	}
	if net.IP(self.GetAddresses()[0]).String() != "172.30.0.1" || self.GetZone() != "zone-a" || !slices.Equal(self.GetPodCidrs(), []string{"10.244.1.0/24"}) {
		t.Errorf("n1 hears of itself: %v", &self)
	}

	n2 := c.connect("n2")
	n2.until("everything is there", n2.has(2, 2, 2, 1))
	if n2.have[envoy.NodeType]["n2"] == nil {
		t.Errorf("n2 does not hear of itself, but of %v", n2.have[envoy.NodeType])
	}
}

func TestOneEndpointIsOneAssignment(t *testing.T) {
	c, folder := startDirectory(t, twoServices())
	n := c.connect("n1")
	n.until("everything is there", n.has(2, 2, 2, 1))

	n.log = nil
	put(t, folder, "web-slice.yaml", sliceManifest("web", "10.244.1.1", "10.244.1.3"))
	n.until("the endpoint has changed", func() bool { return slices.Contains(n.endpoints("default/web:http/TCP"), "10.244.1.3:8080") })
	// Written again without a difference that matters, it is nothing. Another change proves that nothing came before.
	put(t, folder, "web-slice.yaml", "# A comment.\n"+sliceManifest("web", "10.244.1.1", "10.244.1.3"))
	put(t, folder, "api-slice.yaml", sliceManifest("api"))
	n.until("the other Service has no endpoints", func() bool { return len(n.endpoints("default/api:http/TCP")) == 0 })
	n.until("its frontend refuses", func() bool { return slices.Contains(n.log, "Frontend + 10.96.0.2:80/TCP") })
	want := []string{
		"ClusterLoadAssignment + default/web:http/TCP",
		"ClusterLoadAssignment + default/api:http/TCP",
		"Frontend + 10.96.0.2:80/TCP",
	}
	if diff := cmp.Diff(want, n.log); diff != "" {
		t.Errorf("sent (-want +got):\n%s", diff)
	}
}

func TestObjectsComeAndGo(t *testing.T) {
	c, folder := startDirectory(t, twoServices())
	n := c.connect("n2")
	n.until("everything is there", n.has(2, 2, 2, 1))
	put(t, folder, "api.yaml", "# Nothing any more.\n")
	n.until("the Service is gone", n.has(1, 1, 1, 1))
	put(t, folder, "api.yaml", serviceManifest("api", "10.96.0.7"))
	n.until("the Service is back", n.has(2, 2, 2, 1))
	if n.have[envoy.ClusterType]["10.96.0.7:80"] == nil {
		t.Errorf("not at its new address: %q", n.log)
	}
	put(t, folder, "nodes.yaml", nodeManifest("n1", "172.30.0.1"))
	n.until("the node is gone", n.has(2, 2, 2, 0))
	if got := c.status().World; got != (status.World{Services: 2, Frontends: 2, Endpoints: 3, Nodes: 1}) {
		t.Errorf("counted %+v", got)
	}
}

// sourceFunc is a source that a test plays.
type sourceFunc func(context.Context, *source.Queue) error

func (f sourceFunc) Run(ctx context.Context, q *source.Queue) error { return f(ctx, q) }

func TestNothingIsServedBeforeEverythingIsKnown(t *testing.T) {
	queue := make(chan *source.Queue, 1)
	c := startServer(t, sourceFunc(func(ctx context.Context, q *source.Queue) error {
		queue <- q
		<-ctx.Done()
		return nil
	}))
	q := <-queue
	q.Set(source.Event{Object: object("web", "10.96.0.1")})
	q.SetSynced(model.KindService, model.KindEndpointSlice)

	// The queue empties, and still nobody is served.
	c.eventually("the Service was taken", func() bool { _, n := q.Oldest(); return n == 0 })
	if code, body := c.get("/readyz"); code != 503 || body != "waiting for the first complete list of Nodes\n" {
		t.Errorf("/readyz: %d %q", code, body)
	}
	if code, body := c.get("/livez"); code != 200 {
		t.Errorf("/livez: %d %q", code, body)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if addr, err := c.Addr(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("serves at %v, %v", addr, err)
	}

	list := model.ObjectKey{Kind: source.KindSource, Name: "API server's list of Nodes"}
	q.Set(source.Event{Object: model.Object{Key: list, Problems: []model.Problem{{Object: list.Name, Reason: model.Unreadable, Message: "nodes is forbidden"}}}})
	c.eventually("the reason is told", func() bool {
		_, body := c.get("/readyz")
		return body == "waiting for the first complete list of Nodes; API server's list of Nodes: nodes is forbidden\n"
	})

	q.Set(source.Event{Object: model.Object{Key: list}})
	q.SetSynced(model.KindNode)
	n := c.connect("n1")
	n.until("the Service is there", n.has(1, 1, 1, 0))
	if code, body := c.get("/readyz"); code != 200 {
		t.Errorf("/readyz: %d %q", code, body)
	}
}

// object returns a Service as a source delivers it.
func object(name, clusterIP string) model.Object {
	key := model.ServiceKey{Namespace: "default", Name: name}
	return model.Object{
		Key: model.ObjectKey{Kind: model.KindService, Namespace: key.Namespace, Name: key.Name},
		Service: &model.Service{
			Key:                   key,
			Ports:                 []model.Port{{Name: "http", Protocol: model.TCP, Port: 80}},
			ClusterIPs:            []netip.Addr{netip.MustParseAddr(clusterIP)},
			InternalTrafficPolicy: model.Cluster,
			ExternalTrafficPolicy: model.Cluster,
		},
	}
}

func TestABadObjectCostsOnlyItself(t *testing.T) {
	manifests := twoServices()
	manifests["bad.yaml"] = serviceManifest("bad", "10.96.0.300")
	c, folder := startDirectory(t, manifests)
	n := c.connect("n1")
	n.until("the others are there", n.has(2, 2, 2, 1))

	problems := c.status().Problems
	if len(problems) != 1 || problems[0].Object != "Service default/bad" || problems[0].Reason != model.InvalidAddress || !strings.Contains(problems[0].Message, "10.96.0.300") {
		t.Errorf("problems %+v", problems)
	}
	if _, metrics := c.get("/metrics"); !strings.Contains(metrics, `fairlead_problems{reason="InvalidAddress"} 1`) {
		t.Errorf("no problem in the metrics:\n%s", metrics)
	}

	put(t, folder, "bad.yaml", serviceManifest("bad", "10.96.0.30"))
	n.until("it is there when it is good", n.has(3, 3, 3, 1))
	if problems := c.status().Problems; len(problems) != 0 {
		t.Errorf("problems %+v, want none any more", problems)
	}
}

// Package kube lets no such object through; should one come all the same, Envoy must not be the one to find out.
func TestResourcesThatAreNotValidAreNotPublished(t *testing.T) {
	queue := make(chan *source.Queue, 1)
	c := startServer(t, sourceFunc(func(ctx context.Context, q *source.Queue) error {
		queue <- q
		<-ctx.Done()
		return nil
	}))
	q := <-queue
	q.Set(source.Event{Object: object("web", "10.96.0.1")}, source.Event{Object: object("bad\xff", "10.96.0.2")})
	q.SetSynced(model.KindService, model.KindEndpointSlice, model.KindNode)
	n := c.connect("n1")
	n.until("the good Service is there", n.has(1, 1, 1, 0))
	c.eventually("the other one is a problem", func() bool { return len(c.status().Problems) == 1 })
	if p := c.status().Problems[0]; p.Reason != model.InvalidObject || p.Object != "Service default/bad\uFFFD" || !strings.Contains(p.Message, "not forwarded") {
		t.Errorf("problem %+v", p)
	}

	q.Set(source.Event{Object: model.Object{Key: object("bad\xff", "10.96.0.2").Key}})
	c.eventually("the problem is gone with the object", func() bool { return len(c.status().Problems) == 0 })
}

func TestMetricsAndStatusTellWhatANodeHas(t *testing.T) {
	c, folder := startDirectory(t, twoServices())
	n := c.connect("n1")
	n.until("everything is there", n.has(2, 2, 2, 1))
	program := c.connectTo("default/client", envoy.AssignmentType) // It is no node, and measures nothing.
	program.until("everything is there", program.has(0, 2, 0, 0))
	put(t, folder, "web-slice.yaml", sliceManifest("web", "10.244.1.1"))
	program.ack(program.take("the change comes"))
	held := n.take("the change comes")
	c.eventually("the node lags behind", func() bool {
		s := c.status()
		return len(s.Nodes) == 2 && s.Nodes[0].Applied == s.Publish-1 && s.Nodes[0].LagSeconds > 0
	})
	var metrics string
	c.eventually("the program has acknowledged everything", func() bool {
		_, metrics = c.get("/metrics")
		return sample(metrics, `fairlead_xds_responses_total{result="ack",type="ClusterLoadAssignment"}`) == "3"
	})
	if got := sample(metrics, "fairlead_programming_duration_seconds_count"); got != "" {
		t.Errorf("%s observations before the node has acknowledged a change", got)
	}

	n.ack(held)
	c.eventually("the node has everything", func() bool {
		s := c.status()
		return s.Nodes[0].Applied == s.Publish && s.Nodes[0].LagSeconds == 0
	})
	c.eventually("that is measured", func() bool {
		_, metrics = c.get("/metrics")
		return sample(metrics, "fairlead_propagation_duration_seconds_count") != ""
	})
	for name, want := range map[string]string{
		"fairlead_services":                          "2",
		"fairlead_frontends":                         "2",
		"fairlead_endpoints":                         "2",
		"fairlead_nodes":                             "2",
		`fairlead_xds_subscriptions{type="Cluster"}`: "1",
		`fairlead_agents{state="Forwarding"}`:        "1",
		`fairlead_agents{state="NotReady"}`:          "0",
		`fairlead_node_forwarding{node="n1"}`:        "1",
		`fairlead_node_forwarding{node="n2"}`:        "0",
		"fairlead_grpc_programs":                     "1",
		"fairlead_ready":                             "1",
		"fairlead_queue_length":                      "0",
		`fairlead_xds_responses_total{result="ack",type="ClusterLoadAssignment"}`: "4",
		"fairlead_programming_duration_seconds_count":                             "1",
		"fairlead_propagation_duration_seconds_count":                             "1",
		`fairlead_propagation_duration_seconds_bucket{le="10"}`:                   "1",
		"fairlead_publication_duration_seconds_count":                             "2",
		"fairlead_translation_duration_seconds_count":                             "2",
	} {
		if got := sample(metrics, name); got != want {
			t.Errorf("%s is %q, want %s", name, got, want)
		}
	}
	for _, name := range []string{"web", "default"} {
		if regexp.MustCompile(`fairlead_[^ ]*"` + name + `"`).MatchString(metrics) {
			t.Errorf("a label names %s:\n%s", name, metrics)
		}
	}
}

// What an alert asks for is there before anything has gone wrong, and has a name as Prometheus has them.
func TestMetricsAreThereFromTheStart(t *testing.T) {
	c, _ := startDirectory(t, twoServices())
	c.eventually("it serves", func() bool { code, _ := c.get("/readyz"); return code == http.StatusOK })
	_, metrics := c.get("/metrics")
	want := []string{`fairlead_node_forwarding{node="n1"}`, `fairlead_node_forwarding{node="n2"}`}
	for _, reason := range model.Reasons {
		want = append(want, fmt.Sprintf("fairlead_problems{reason=%q}", reason))
	}
	for _, state := range status.States {
		want = append(want, fmt.Sprintf("fairlead_agents{state=%q}", state))
	}
	for _, kind := range []string{"Node", "Cluster", "ClusterLoadAssignment", "Listener", "Frontend", "other"} {
		for _, result := range []string{"ack", "nack"} {
			want = append(want, fmt.Sprintf("fairlead_xds_responses_total{result=%q,type=%q}", result, kind))
		}
	}
	for _, name := range want {
		if got := sample(metrics, name); got != "0" {
			t.Errorf("%s is %q, want 0", name, got)
		}
	}
	problems, err := promlint.New(strings.NewReader(metrics)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// sample returns a value from the metrics, empty if it is not there.
func sample(metrics, name string) string {
	for line := range strings.Lines(metrics) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// Whether a node forwards a Service takes its agent, an ACK of the change, and an agent that reports no obstacle.
func TestServiceStatus(t *testing.T) {
	c, folder := startDirectory(t, twoServices())
	n := c.connect("n1")
	n.until("everything is there", n.has(2, 2, 2, 1))
	report := func(r frontendpb.Report) {
		n.send(&discoverypb.DeltaDiscoveryRequest{Node: &corepb.Node{Id: "n1", Metadata: r.Metadata()}, TypeUrl: envoy.NodeType})
	}
	var got []status.ServiceNode
	says := func(forwards bool, reason string) func() bool {
		return func() bool {
			s, err := c.ServiceStatus("default/web")
			if err != nil {
				t.Fatal(err)
			}
			got = s.Nodes
			return len(got) == 2 && got[0].Forwards == forwards && strings.Contains(got[0].Reason, reason)
		}
	}
	c.eventually("the node forwards", says(true, ""))
	if got[1].Node != "n2" || got[1].Forwards || !strings.Contains(got[1].Reason, "no agent is connected") {
		t.Errorf("a node without an agent: %+v", got[1])
	}
	report(frontendpb.Report{NotReady: "no Envoy is ready"})
	c.eventually("the node has no Envoy", says(false, "no Envoy is ready"))
	if _, body := c.get("/agents"); body != "{\n  \"n1\": \"NotReady\"\n}\n" {
		t.Errorf("other replicas are told %s", body)
	}
	report(frontendpb.Report{})
	c.eventually("the node forwards again", says(true, ""))
	put(t, folder, "web-slice.yaml", sliceManifest("web", "10.244.1.1"))
	held := n.take("the change comes")
	c.eventually("the node has yet to acknowledge", says(false, "yet to apply it"))
	n.ack(held)
	c.eventually("the node forwards the change", says(true, ""))
}

func TestANackIsTold(t *testing.T) {
	c, folder := startDirectory(t, twoServices())
	n := c.connect("n1")
	n.until("everything is there", n.has(2, 2, 2, 1))
	put(t, folder, "web-slice.yaml", sliceManifest("web", "10.244.1.1"))
	r := n.take("the change comes")
	n.send(&discoverypb.DeltaDiscoveryRequest{TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce(), ErrorDetail: &statuspb.Status{Message: "I do not like it"}})
	c.eventually("the status has the reason", func() bool {
		for _, of := range c.status().Nodes[0].Types {
			if of.Type == "ClusterLoadAssignment" && of.Nack == "I do not like it" {
				return true
			}
		}
		return false
	})
	var metrics string
	c.eventually("the NACK is counted", func() bool {
		_, metrics = c.get("/metrics")
		return sample(metrics, `fairlead_xds_responses_total{result="nack",type="ClusterLoadAssignment"}`) == "1"
	})
	if got := sample(metrics, "fairlead_programming_duration_seconds_count"); got != "" {
		t.Errorf("what was rejected counts as programmed: %s", got)
	}
}

func TestRunStopsAndClientsHearIt(t *testing.T) {
	c, _ := startDirectory(t, twoServices())
	n := c.connect("n1")
	n.until("everything is there", n.has(2, 2, 2, 1))
	started := time.Now()
	if err := c.stop(); err != nil {
		t.Errorf("Run: %v", err)
	}
	if took := time.Since(started); took > 8*time.Second {
		t.Errorf("stopping took %s", took)
	}
	select {
	case <-n.ended:
	case <-time.After(deadline):
		t.Error("the client's stream goes on")
	}
}

func TestRunFailsWithAPart(t *testing.T) {
	broken := errors.New("no such folder")
	s, err := New(Config{
		Source: sourceFunc(func(context.Context, *source.Queue) error { return broken }),
		Listen: "127.0.0.1:0", Admin: "127.0.0.1:0",
		Traces: tracenoop.NewTracerProvider(), Meters: metricnoop.NewMeterProvider(), Metrics: http.NotFoundHandler(), Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	if err := s.Run(ctx); !errors.Is(err, broken) {
		t.Errorf("error %v, want %v", err, broken)
	}
}

func TestNewRefusesAddresses(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for _, test := range []struct{ listen, admin, want string }{
		{"18000", "127.0.0.1:0", "address to serve xDS on"},
		{"127.0.0.1:0", taken.Addr().String(), "answer health and metrics"},
	} {
		_, err := New(Config{
			Listen: test.listen, Admin: test.admin,
			Traces: tracenoop.NewTracerProvider(), Meters: metricnoop.NewMeterProvider(), Log: slog.New(slog.DiscardHandler),
		})
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("listen %s, admin %s: error %v, want %q", test.listen, test.admin, err, test.want)
		}
	}
}
