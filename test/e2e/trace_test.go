package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/fairlead/fairlead/server/lab"
	"github.com/fairlead/fairlead/server/node"
)

// otlpPort is where the example's collector takes spans over HTTP.
const otlpPort = 4318

// collector is an OpenTelemetry collector that runs the example's configuration.
type collector struct {
	address netip.AddrPort
	file    string // What it was sent, one request a line.
}

// startCollector runs the collector on the control plane's host until the test ends.
func startCollector(t *testing.T) collector {
	t.Helper()
	c := theCluster
	example, err := os.ReadFile(filepath.Join(c.root, "examples", "observability", "collector.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	made := collector{netip.AddrPortFrom(c.kube.host.IPv4, otlpPort), filepath.Join(c.dir, "traces.jsonl")}
	config := filepath.Join(c.dir, "collector.yaml")
	text := strings.Replace(string(example), "/var/lib/otelcol/traces.jsonl", made.file, 1)
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	p, err := c.kube.host.Run("collector", c.log("collector"), exec.Command(c.binary("collector"), "--config", "file:"+config))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Ended(); err != nil {
			t.Error(err)
		}
		p.Kill()
	})
	return made
}

// values returns Helm's flags that have the chart use the collector: those of the example, with the real address.
func (c collector) values(t *testing.T) []string {
	t.Helper()
	path := filepath.Join(theCluster.root, "examples", "observability", "values.yaml")
	example, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.ReplaceAll(string(example), "192.0.2.1:4318", c.address.String())
	if text == string(example) {
		t.Fatalf("%s names no collector", path)
	}
	file := filepath.Join(t.TempDir(), "values.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return []string{"--values", file}
}

// span is what of a span matters here.
type span struct {
	TraceID    string `json:"traceId"`
	Name       string `json:"name"`
	Attributes attributes
	service    string
}

// attributes are those of OTLP in JSON.
type attributes []struct {
	Key   string
	Value struct{ StringValue string }
}

func (a attributes) get(key string) string {
	for _, each := range a {
		if each.Key == key {
			return each.Value.StringValue
		}
	}
	return ""
}

// traces returns all spans that the collector has written, by trace.
func (c collector) traces() (map[string][]span, error) {
	content, err := os.ReadFile(c.file)
	if err != nil {
		return nil, err
	}
	traces := map[string][]span{}
	for line := range strings.Lines(string(content)) {
		if !strings.HasSuffix(line, "\n") {
			break // Still being written.
		}
		var request struct {
			ResourceSpans []struct {
				Resource   struct{ Attributes attributes }
				ScopeSpans []struct{ Spans []span }
			}
		}
		if err := json.Unmarshal([]byte(line), &request); err != nil {
			return nil, fmt.Errorf("%s: %w", c.file, err)
		}
		for _, r := range request.ResourceSpans {
			for _, scope := range r.ScopeSpans {
				for _, s := range scope.Spans {
					s.service = r.Resource.Attributes.get("service.name")
					traces[s.TraceID] = append(traces[s.TraceID], s)
				}
			}
		}
	}
	return traces, nil
}

// joined looks for the trace of a change of an object whose name begins so, with the control plane's spans and a span of
// each node.
func (c collector) joined(object string, nodes []*lab.Node) error {
	want := []string{"fairlead kubernetes.change", "fairlead publish", "fairlead translate"}
	for _, n := range nodes {
		want = append(want, "fairlead ack "+n.Name, "fairlead-agent node.program "+n.Name)
	}
	slices.Sort(want)
	traces, err := c.traces()
	if err != nil {
		return err
	}
	var seen []string
	for _, spans := range traces {
		var got []string
		about := false
		for _, s := range spans {
			about = about || strings.HasPrefix(s.Attributes.get("k8s.object"), object)
			got = append(got, strings.TrimSpace(s.service+" "+s.Name+" "+s.Attributes.get("k8s.node.name")))
		}
		slices.Sort(got)
		if about && slices.Equal(got, want) {
			return nil
		}
		if about {
			seen = append(seen, fmt.Sprintf("%q", got))
		}
	}
	return fmt.Errorf("no trace of %s with exactly %q among: %s", object, want, strings.Join(seen, "; "))
}

// traced changes a Service's endpoints while all nodes follow one replica, and waits for the one trace of that.
func (h helm) traced(s *service, c collector) {
	h.t.Helper()
	h.must("upgrade", release, h.chart(), "--namespace", containersNamespace, "--reuse-values", "--set", "controlPlane.replicas=1")
	h.awaitPods("control-plane", 1)
	h.eventually(h.followTheOnlyReplica)
	s.scale(4)
	h.eventually(func() error { return c.joined("EndpointSlice default/"+s.name, h.nodes) })
}

// followTheOnlyReplica reports whether all agents do.
func (h helm) followTheOnlyReplica() error {
	only := h.pods("control-plane")[0].Status.PodIP
	for _, n := range h.nodes {
		text, err := fetch(h.t.Context(), n.Host, "127.0.0.1:19001", "/debug/status")
		if err != nil {
			return err
		}
		var status node.Status
		if err := json.Unmarshal([]byte(text), &status); err != nil {
			return err
		}
		// Dual-stack: the replica has two addresses, of which the agent chose one.
		if up := status.Upstream; !up.Connected || !strings.HasPrefix(up.Address, only+":") && !strings.HasPrefix(up.Address, "[") {
			return fmt.Errorf("the agent of %s follows %q (connected: %v), want the replica at %s", n.Name, up.Address, up.Connected, only)
		}
	}
	return nil
}

// metricNames are the names of our metrics in a text.
var metricNames = regexp.MustCompile(`\bfairlead_[a-z_]+`)

// exampleMetrics compares the metrics that the example's dashboard and alerts ask for with those that the processes have.
func (h helm) exampleMetrics() {
	h.t.Helper()
	var shown []string
	for _, file := range []string{"dashboard.json", "alerts.yaml"} {
		text, err := os.ReadFile(filepath.Join(h.cluster.root, "examples", "observability", file))
		if err != nil {
			h.t.Fatal(err)
		}
		names := metricNames.FindAllString(string(text), -1)
		if len(names) == 0 {
			h.t.Errorf("%s asks for nothing", file)
		}
		shown = append(shown, names...)
	}
	agents, err := fetch(h.t.Context(), h.cluster.outside, netip.AddrPortFrom(h.nodes[0].IPv4, 19001).String(), "/metrics")
	if err != nil {
		h.t.Fatal(err)
	}
	replica := h.pods("control-plane")[0]
	control, err := fetch(h.t.Context(), h.clients[0], replica.Status.PodIP+":19000", "/metrics")
	if err != nil {
		h.t.Fatal(err)
	}
	known := metricNames.FindAllString(agents+control, -1)
	for _, name := range shown {
		if !slices.Contains(known, name) {
			h.t.Errorf("an example asks for %s, which no process has", name)
		}
	}
}

// fetch asks an HTTP server from a host.
func fetch(ctx context.Context, from *lab.Host, address, path string) (string, error) {
	client := &http.Client{Transport: &http.Transport{DialContext: from.DialContext, DisableKeepAlives: true}, Timeout: requestTimeout}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+path, nil)
	if err != nil {
		return "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if resp.StatusCode != http.StatusOK {
		err = errors.Join(err, fmt.Errorf("%s%s: %s: %s", address, path, resp.Status, body))
	}
	return string(body), err
}
