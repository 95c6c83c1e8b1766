package inspect

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/fairlead/fairlead/server/controlplane/status"
	"github.com/fairlead/fairlead/server/ops/reach"
	"github.com/fairlead/fairlead/translate/model"
)

// replica answers as a control plane's admin port does.
func replica(t *testing.T, path string, get func() any) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != path {
			http.NotFound(w, r)
			return
		}
		if err := json.NewEncoder(w).Encode(get()); err != nil {
			t.Error(err)
		}
	}))
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

// states runs replicas with these states.
func states(t *testing.T, all ...status.Status) reach.Fixed {
	t.Helper()
	var addresses reach.Fixed
	for _, s := range all {
		addresses = append(addresses, replica(t, "/debug/status", func() any { return s }))
	}
	return addresses
}

// began is when nodes entered their states, and no agent is a row of a node without one.
var (
	began   = time.Now().Add(-time.Hour)
	noAgent = status.Node{Node: "n1", State: status.NoAgent, Since: began, Reason: "no agent is connected"}
)

func TestStatus(t *testing.T) {
	good := status.Node{Node: "n1", State: status.Forwarding, Since: began, Connected: true, Version: "v1.2.3", Applied: 7}
	behind, nacked, unready := good, good, good
	behind.State, behind.Reason = status.Behind, "the node lacks changes from publish 8 on"
	nacked.State, nacked.Reason = status.Rejecting, "the agent rejects Cluster: bad name"
	unready.State, unready.Reason = status.NotReady, "no Envoy is ready"
	problem := model.Problem{Object: "Service default/x", Reason: model.InvalidAddress, Message: "fix it"}
	of := func(nodes ...status.Node) status.Status {
		return status.Status{Ready: true, Publish: 7, Version: "v1.2.3", Nodes: nodes}
	}
	for name, test := range map[string]struct {
		replicas []status.Status
		want     string
		err      error
	}{
		"good":                        {[]status.Status{of(good)}, "n1     Forwarding   60m   v1.2.3", nil},
		"no agent":                    {[]status.Status{of(noAgent)}, "n1: no agent is connected", ErrNotForwarding},
		"behind":                      {[]status.Status{of(behind)}, "n1: the node lacks changes", ErrNotForwarding},
		"nacked":                      {[]status.Status{of(nacked)}, "n1: the agent rejects Cluster: bad name", ErrNotForwarding},
		"not ready":                   {[]status.Status{of(unready)}, "n1: no Envoy is ready", ErrNotForwarding},
		"its agent is elsewhere":      {[]status.Status{of(noAgent), of(good)}, "n1     Forwarding   60m   v1.2.3", nil},
		"its agent is nowhere":        {[]status.Status{of(noAgent), of(noAgent)}, "n1     NoAgent   60m", ErrNotForwarding},
		"a problem":                   {[]status.Status{{Ready: true, Problems: []model.Problem{problem}}}, "Service default/x: InvalidAddress: fix it", ErrProblems},
		"a node beside a problem":     {[]status.Status{{Ready: true, Nodes: []status.Node{behind}, Problems: []model.Problem{problem}}}, "fix it", ErrNotForwarding},
		"a replica that is not ready": {[]status.Status{{Reason: "still listing"}}, "still listing", ErrNotForwarding},
	} {
		t.Run(name, func(t *testing.T) {
			var b bytes.Buffer
			err := Status(t.Context(), states(t, test.replicas...), "table", &b)
			if !errors.Is(err, test.err) || (err != nil) != (test.err != nil) {
				t.Errorf("error %v, want %v", err, test.err)
			}
			if !strings.Contains(b.String(), test.want) || strings.Count(b.String(), test.want) > 1 {
				t.Errorf("not once %q in\n%s", test.want, b.String())
			}
		})
	}
}

// A replica that does not answer is named, and what it may know is not said to be known.
func TestStatusWithoutReplica(t *testing.T) {
	there := states(t, status.Status{Ready: true, Nodes: []status.Node{{Node: "n0", State: status.Forwarding, Connected: true}, noAgent}})
	var b bytes.Buffer
	err := Status(t.Context(), append(there, "127.0.0.1:1"), "table", &b)
	if !errors.Is(err, ErrUnreachable) {
		t.Errorf("error %v, want %v", err, ErrUnreachable)
	}
	for _, want := range []string{"127.0.0.1:1       no answer", "127.0.0.1:1: dial tcp", "n0     Forwarding", "n1     Unknown", "and 127.0.0.1:1 gives no answer"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
}

// JSON and YAML have the same keys, and all that the table has.
func TestStatusFormats(t *testing.T) {
	from := states(t, status.Status{Ready: true, Publish: 7, Version: "v1.2.3", Nodes: []status.Node{noAgent}})
	var inJSON, inYAML bytes.Buffer
	for format, w := range map[string]*bytes.Buffer{"json": &inJSON, "yaml": &inYAML} {
		if err := Status(t.Context(), from, format, w); !errors.Is(err, ErrNotForwarding) {
			t.Errorf("%s: error %v", format, err)
		}
	}
	converted, err := yaml.YAMLToJSON(inYAML.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	var fromJSON, fromYAML map[string]any
	if err := errors.Join(json.Unmarshal(inJSON.Bytes(), &fromJSON), json.Unmarshal(converted, &fromYAML)); err != nil {
		t.Fatal(err)
	}
	for _, r := range []map[string]any{fromJSON, fromYAML} {
		node := r["nodes"].([]any)[0].(map[string]any)
		if node["node"] != "n1" || node["state"] != "NoAgent" || node["reason"] == "" || node["since"] == "" {
			t.Errorf("node %v", node)
		}
	}
	if err := Status(t.Context(), from, "xml", &inJSON); err == nil || !strings.Contains(err.Error(), `format "xml"`) {
		t.Errorf("error %v", err)
	}
}

// Watch prints what it finds, and again when that has changed: here one replica's answers, one after the other.
func TestWatch(t *testing.T) {
	node := status.Node{Node: "n1", State: status.Forwarding, Since: began, Connected: true}
	answers := make(chan status.Status, 3)
	answers <- status.Status{Ready: true, Nodes: []status.Node{node}}
	node.LagSeconds, node.Applied = 0.5, 9
	answers <- status.Status{Ready: true, Publish: 9, Nodes: []status.Node{node}}
	answers <- status.Status{Ready: true, Nodes: []status.Node{noAgent}}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	from := reach.Fixed{replica(t, "/debug/status", func() any {
		select {
		case s := <-answers:
			return s
		default:
			cancel()
			return status.Status{}
		}
	})}
	var b bytes.Buffer
	if err := watch(ctx, from, "table", time.Millisecond, &b); !errors.Is(err, ErrNotForwarding) {
		t.Errorf("error %v, want that of the last answer", err)
	}
	if strings.Count(b.String(), "NODE ") != 2 || strings.Count(b.String(), "NoAgent") != 1 {
		t.Errorf("printed\n%s", b.String())
	}
}

// Wait ends when each node has the change, whichever replica its agent is connected to, and names those that lack it.
func TestWait(t *testing.T) {
	var late, alone atomic.Bool
	first := replica(t, "/debug/service", func() any {
		return status.Service{Nodes: []status.ServiceNode{{Node: "n1", Connected: true, Forwards: true}, {Node: "n2", Reason: "no agent"}}}
	})
	second := replica(t, "/debug/service", func() any {
		n2 := status.ServiceNode{Node: "n2", Connected: true, Forwards: late.Swap(true), Reason: "yet to apply it"}
		if alone.Load() {
			n2 = status.ServiceNode{Node: "n2", Reason: "no agent"}
		}
		return status.Service{Nodes: []status.ServiceNode{{Node: "n1", Reason: "no agent"}, n2}}
	})
	if err := Wait(t.Context(), reach.Fixed{first, second}, "default/web"); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	alone.Store(true)
	if err := Wait(ctx, reach.Fixed{first, second}, "default/web"); !errors.Is(err, ErrNotForwarding) || !strings.HasSuffix(err.Error(), "on\n  n2: no agent") {
		t.Errorf("a node without an agent is not waited for: %v", err)
	}
}

// behindAPI is replicas beside an API server that has other versions.
type behindAPI struct {
	reach.Fixed
	versions map[string]string
}

func (b behindAPI) Versions(context.Context, string) (map[string]string, error) {
	return b.versions, nil
}

// That every node forwards what a replica has read is not enough: it has to have read the newest.
func TestWaitForTheNewest(t *testing.T) {
	read := map[string]string{"Service default/web": "7", "EndpointSlice default/web-1": "10"}
	from := reach.Fixed{replica(t, "/debug/service", func() any {
		return status.Service{Nodes: []status.ServiceNode{{Node: "n1", Connected: true, Forwards: true}}, Versions: read}
	})}
	for name, test := range map[string]struct {
		newest map[string]string
		want   string // What has yet to be read.
	}{
		"unknown":  {nil, ""},
		"the same": {read, ""},
		"older":    {map[string]string{"Service default/web": "7", "EndpointSlice default/web-1": "9"}, ""},
		"newer":    {map[string]string{"Service default/web": "7", "EndpointSlice default/web-1": "11"}, "EndpointSlice default/web-1"},
		"one more": {map[string]string{"Service default/web": "7", "EndpointSlice default/web-1": "10", "EndpointSlice default/web-2": "8"}, "EndpointSlice default/web-2"},
		"one less": {map[string]string{"Service default/web": "7"}, "EndpointSlice default/web-1"},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		err := Wait(ctx, behindAPI{from, test.newest}, "default/web")
		cancel()
		if test.want == "" && err != nil || test.want != "" && (!errors.Is(err, ErrNotForwarding) || !strings.HasSuffix(err.Error(), "has yet to read the newest version of "+test.want)) {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

// Nodes that have the same reason share a line.
func TestByReason(t *testing.T) {
	reasons := map[string]string{"a": "no Envoy\nno nft"}
	for i := range 9 {
		reasons[fmt.Sprint("n", i)] = "no agent"
	}
	want := []string{"a: no Envoy; no nft", "n0, n1, n2, n3, n4 and 4 more: no agent"}
	if got := byReason(reasons); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestWaitInVain(t *testing.T) {
	empty := replica(t, "/debug/service", func() any { return status.Service{} })
	for _, test := range []struct {
		replicas reach.Fixed
		want     string
		err      error
	}{
		{reach.Fixed{empty}, "there is no node", nil},
		{reach.Fixed{empty, "127.0.0.1:1"}, "127.0.0.1:1: dial tcp", ErrUnreachable},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		err := Wait(ctx, test.replicas, "default/web")
		cancel()
		if err == nil || !strings.Contains(err.Error(), test.want) || test.err != nil && !errors.Is(err, test.err) {
			t.Errorf("error %v, want %q", err, test.want)
		}
	}
}
