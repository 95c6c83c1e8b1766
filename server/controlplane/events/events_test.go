package events

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/fairlead/fairlead/server/controlplane/status"
	"github.com/fairlead/fairlead/translate/model"
)

// desk is a Writer with a clock, an API server and another replica that the test plays.
type desk struct {
	*Writer
	t        *testing.T
	clock    time.Time
	problems []model.Problem
	nodes    []status.Node
	counts   map[string]int32        // Of each Event, when it was last looked.
	other    map[string]status.State // What the other replica answers; nil: nothing.
}

// newDesk returns a Writer of the replica self, beside one named other, or alone.
func newDesk(t *testing.T, alone bool) *desk {
	t.Helper()
	d := &desk{t: t, clock: time.Now().Truncate(time.Second), counts: map[string]int32{}}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/agents" || d.other == nil {
			http.Error(w, "not now", http.StatusServiceUnavailable)
			return
		}
		if err := json.NewEncoder(w).Encode(d.other); err != nil {
			t.Error(err)
		}
	}))
	t.Cleanup(server.Close)
	slice := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{
		Namespace: "fairlead-system", Name: "fairlead-1", Labels: map[string]string{discoveryv1.LabelServiceName: "fairlead"},
	}}
	for _, pod := range []string{"self", "other", "starts"} {
		ready := pod == "self" || pod == "other" && !alone
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{"127.0.0.1"}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}, TargetRef: &corev1.ObjectReference{Kind: "Pod", Name: pod},
		})
	}
	client := fake.NewClientset(slice,
		&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web", UID: "web-uid"}},
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", UID: "n1-uid"}})
	d.Writer = New(Config{
		Client: client, Service: types.NamespacedName{Namespace: "fairlead-system", Name: "fairlead"}, Pod: "self",
		AdminPort: server.Listener.Addr().(*net.TCPAddr).Port, Log: slog.New(slog.DiscardHandler),
		Problems: func() []model.Problem { return d.problems }, Nodes: func() []status.Node { return d.nodes },
	})
	d.Writer.now = func() time.Time { return d.clock }
	return d
}

// look has the Writer look after a time, and returns the Events that it writes, in order.
func (d *desk) look(after time.Duration) []string {
	d.t.Helper()
	d.clock = d.clock.Add(after)
	d.Writer.look(d.t.Context())
	list, err := d.cfg.Client.CoreV1().Events("").List(d.t.Context(), metav1.ListOptions{})
	if err != nil {
		d.t.Fatal(err)
	}
	var all []string
	for _, e := range list.Items {
		if e.Count > d.counts[e.Name] && e.LastTimestamp.Equal(&metav1.Time{Time: d.clock}) {
			all = append(all, e.Type+" "+e.Reason+" "+e.Message)
		}
		d.counts[e.Name] = e.Count
	}
	slices.Sort(all)
	return all
}

// A problem is written once, again while it lasts, and once more when it is over.
func TestProblems(t *testing.T) {
	d := newDesk(t, true)
	bad := model.Problem{Object: "Service default/web", Reason: model.InvalidPort, Message: "port 0: use one from 1 to 65535"}
	warning := "Warning InvalidPort port 0: use one from 1 to 65535"
	for _, step := range []struct {
		problems []model.Problem
		after    time.Duration
		want     []string
	}{
		{nil, 0, nil},
		{[]model.Problem{bad}, interval, []string{warning}},
		{[]model.Problem{bad}, interval, nil},
		{[]model.Problem{bad}, repeat, []string{warning}},
		{nil, interval, []string{"Normal ProblemSolved no longer InvalidPort: port 0: use one from 1 to 65535"}},
		{nil, interval, nil},
		{[]model.Problem{bad}, interval, []string{warning}}, // Though it was told minutes ago, for it was over since.
		{nil, interval, []string{"Normal ProblemSolved no longer InvalidPort: port 0: use one from 1 to 65535"}},
		// What has no object has no Event.
		{[]model.Problem{{Object: "manifests/web.yaml", Reason: model.Unreadable}, {Object: "Service default/gone", Reason: model.InvalidPort}}, interval, nil},
		{[]model.Problem{{Object: bad.Object, Reason: bad.Reason, Message: strings.Repeat("é", maxMessage)}}, interval, []string{"Warning InvalidPort " + strings.Repeat("é", maxMessage/2-2) + cut}},
	} {
		d.problems = step.problems
		if diff := cmp.Diff(step.want, d.look(step.after)); diff != "" {
			t.Errorf("%v (-want +got):\n%s", step.problems, diff)
		}
	}
}

// A node is written about when it has not forwarded for a while, and when it does again, by the replica that knows.
func TestNodes(t *testing.T) {
	here := func(state status.State, reason string) status.Node {
		return status.Node{Node: "n1", State: state, Reason: reason, Connected: state != status.NoAgent}
	}
	noAgent, elsewhere := here(status.NoAgent, "no agent"), map[string]status.State{"n1": status.Forwarding}
	type step struct {
		node  status.Node
		other map[string]status.State
		want  []string
	}
	warning, normal := []string{"Warning FairleadNoAgent no agent"}, []string{"Normal FairleadForwarding the node forwards Services again"}
	nowhere := map[string]status.State{}
	for name, steps := range map[string][]step{
		"forwards":                {{here(status.Forwarding, ""), nil, nil}, {here(status.Forwarding, ""), nil, nil}},
		"is away for a moment":    {{noAgent, nowhere, nil}, {here(status.Forwarding, ""), nowhere, nil}, {noAgent, nowhere, nil}},
		"has no agent":            {{noAgent, nowhere, nil}, {noAgent, nowhere, warning}, {noAgent, nowhere, nil}, {here(status.Forwarding, ""), nil, normal}, {here(status.Forwarding, ""), nil, nil}},
		"has its agent there":     {{noAgent, elsewhere, nil}, {noAgent, elsewhere, nil}},
		"comes back there":        {{noAgent, nowhere, nil}, {noAgent, nowhere, warning}, {noAgent, elsewhere, normal}},
		"may have it there":       {{noAgent, nil, nil}, {noAgent, nil, nil}},
		"fails there":             {{noAgent, map[string]status.State{"n1": status.Behind}, nil}, {noAgent, map[string]status.State{"n1": status.Behind}, nil}},
		"is not ready, and why":   {{here(status.NotReady, "no Envoy"), nil, nil}, {here(status.NotReady, "no Envoy"), nil, []string{"Warning FairleadNotReady no Envoy"}}, {here(status.NotReady, "no nft"), nil, []string{"Warning FairleadNotReady no nft"}}},
		"loses its agent as well": {{here(status.NotReady, "no Envoy"), nil, nil}, {here(status.NotReady, "no Envoy"), nil, []string{"Warning FairleadNotReady no Envoy"}}, {noAgent, nowhere, warning}},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDesk(t, false)
			d.cfg.Pod = writerOf("Node n1") // It plays the replica that is picked.
			for i, s := range steps {
				d.nodes, d.other = []status.Node{s.node}, s.other
				if diff := cmp.Diff(s.want, d.look(patience)); diff != "" {
					t.Errorf("step %d (-want +got):\n%s", i+1, diff)
				}
			}
		})
	}
	t.Run("of another replica", func(t *testing.T) {
		d := newDesk(t, false)
		d.other = nowhere
		if d.cfg.Pod = "other"; writerOf("Node n1") == "other" {
			d.cfg.Pod = "self"
		}
		d.nodes = []status.Node{noAgent}
		if got := append(d.look(patience), d.look(patience)...); got != nil {
			t.Errorf("wrote %q about a node that another replica writes about", got)
		}
	})
}

// A replica that starts, or is picked after another, finds what was told and does not repeat it, but tells when it is over.
func TestTakeOver(t *testing.T) {
	d := newDesk(t, true)
	d.problems = []model.Problem{{Object: "Service default/web", Reason: model.InvalidPort, Message: "fix it"}}
	d.nodes = []status.Node{{Node: "n1", State: status.NoAgent, Reason: "no agent"}}
	if got := append(d.look(0), d.look(patience)...); len(got) != 2 {
		t.Fatalf("wrote %q", got)
	}
	cfg := d.cfg
	d.Writer = New(cfg)
	d.Writer.now = func() time.Time { return d.clock }
	if got := append(d.look(interval), d.look(patience)...); got != nil {
		t.Errorf("the next replica repeats %q", got)
	}
	d.problems, d.nodes[0] = nil, status.Node{Node: "n1", State: status.Forwarding, Connected: true}
	if got := d.look(interval); len(got) != 2 || !strings.HasPrefix(got[0], "Normal ") || !strings.HasPrefix(got[1], "Normal ") {
		t.Errorf("the next replica tells %q when all is over", got)
	}
}

// writerOf returns the replica that writes about an object.
func writerOf(object string) string {
	key, _ := keyOf(model.Problem{Object: object})
	for _, pod := range []string{"self", "other"} {
		one := &Writer{cfg: Config{Pod: pod}}
		if one.picked(key, []replica{{pod: "self"}, {pod: "other"}}) {
			return pod
		}
	}
	return ""
}

// Each object has one writer, and keeps it when another replica goes.
func TestPicked(t *testing.T) {
	all := []replica{{pod: "fairlead-7d5-a"}, {pod: "fairlead-7d5-b"}, {pod: "fairlead-7d5-c"}}
	counts := map[string]int{}
	for i := range 3000 {
		key := model.ObjectKey{Kind: model.KindService, Namespace: "default", Name: fmt.Sprint("web-", i)}
		var writers []string
		for _, r := range all {
			if (&Writer{cfg: Config{Pod: r.pod}}).picked(key, all) {
				writers = append(writers, r.pod)
			}
		}
		if len(writers) != 1 {
			t.Fatalf("%s has writers %q, want one", key, writers)
		}
		counts[writers[0]]++
		if writers[0] != all[2].pod && !(&Writer{cfg: Config{Pod: writers[0]}}).picked(key, all[:2]) {
			t.Fatalf("%s changes its writer when another goes", key)
		}
	}
	for pod, n := range counts {
		if n < 800 || n > 1200 {
			t.Errorf("%s writes about %d objects of 3000", pod, n)
		}
	}
}

// Ten thousand problems are not ten thousand Events; what waits is written later.
func TestLimit(t *testing.T) {
	d := newDesk(t, true)
	for i := range 10 * burst {
		d.problems = append(d.problems, model.Problem{Object: "Service default/web", Reason: model.InvalidPort, Message: fmt.Sprint("port ", i)})
	}
	if n := len(d.look(0)); n < burst || n > burst+10 {
		t.Errorf("%d Events at once, want %d", n, burst)
	}
}

// What is written is an Event of the API, of the object that kubectl describe looks for.
func TestRun(t *testing.T) {
	d := newDesk(t, true)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	d.problems = []model.Problem{{Object: "Service default/web", Reason: model.InvalidPort, Message: "fix it"}}
	w := New(d.cfg)
	go func() { ended <- w.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(30 * time.Second); ; {
		list, err := d.cfg.Client.CoreV1().Events("default").List(ctx, metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if len(list.Items) == 1 {
			e := list.Items[0]
			if e.InvolvedObject.UID != "web-uid" || e.InvolvedObject.Kind != "Service" || e.Reason != "InvalidPort" || e.Message != "fix it" || e.Type != corev1.EventTypeWarning || e.Source.Component != component {
				t.Errorf("Event %+v", e)
			}
			return
		}
		select {
		case <-deadline:
			t.Fatalf("Events %+v, want one", list.Items)
		case <-tick.C:
		}
	}
}

// What an agent finds on its node is written by the replica that the agent is connected to, whoever was picked for the node. An
// agent that goes to another replica has solved nothing.
func TestProblemsThatAgentsFind(t *testing.T) {
	d := newDesk(t, false)
	bad := model.Problem{Object: "Node n1", Reason: model.HostObstacle, Message: "mtu: too small; fix: a larger one"}
	row := func(connected bool, problems ...model.Problem) []status.Node {
		return []status.Node{{Node: "n1", State: status.Forwarding, Connected: connected, Problems: problems}}
	}
	warning, over := "Warning HostObstacle "+bad.Message, "Normal ProblemSolved no longer HostObstacle: "+bad.Message
	d.other = map[string]status.State{"n1": status.Forwarding}
	for i, step := range []struct {
		nodes []status.Node
		after time.Duration
		want  []string
	}{
		{row(true), 0, nil},
		{row(true, bad), interval, []string{warning}},
		{row(true, bad), interval, nil},
		{row(true, bad), repeat, []string{warning}},
		{row(true), interval, []string{over}},
		{row(true, bad), interval, []string{warning}},
		{row(false), interval, nil},
		{row(true), interval, nil},
	} {
		d.nodes = step.nodes
		if diff := cmp.Diff(step.want, d.look(step.after)); diff != "" {
			t.Errorf("step %d (-want +got):\n%s", i, diff)
		}
	}
}
