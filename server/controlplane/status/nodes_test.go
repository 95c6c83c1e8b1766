package status

import (
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	gcpcache "github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	gcpstream "github.com/envoyproxy/go-control-plane/pkg/server/stream/v3"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"

	"github.com/fairlead/fairlead/cache"
	"github.com/fairlead/fairlead/translate/envoy"
	"github.com/fairlead/fairlead/translate/frontendpb"
	"github.com/fairlead/fairlead/translate/model"
)

// agent is a client's stream of one type, by delta.
type agent struct {
	t         *testing.T
	stream    *cache.Stream
	responses chan gcpcache.DeltaResponse
	typeURL   string
	node      *corepb.Node
}

// connect opens a client's stream and subscribes to everything of a type.
func connect(t *testing.T, c *cache.Cache, id, typeURL string) *agent {
	t.Helper()
	a := &agent{t: t, stream: c.OpenStream(cache.StreamConfig{}), responses: make(chan gcpcache.DeltaResponse, 2), typeURL: typeURL}
	a.node = &corepb.Node{Id: id, UserAgentVersionType: &corepb.Node_UserAgentVersion{UserAgentVersion: "v1"}}
	a.send(&discoverypb.DeltaDiscoveryRequest{ResourceNamesSubscribe: []string{"*"}})
	return a
}

func (a *agent) send(r *discoverypb.DeltaDiscoveryRequest) {
	a.t.Helper()
	r.Node, r.TypeUrl = a.node, a.typeURL
	if _, err := a.stream.CreateDeltaWatch(r, gcpstream.NewDeltaSubscription([]string{"*"}, nil, nil, false), a.responses); err != nil {
		a.t.Fatal(err)
	}
}

// answer acknowledges the next response, or rejects it with a reason.
func (a *agent) answer(reason string) {
	a.t.Helper()
	m, err := (<-a.responses).GetDeltaDiscoveryResponse()
	if err != nil {
		a.t.Fatal(err)
	}
	m.Nonce = "1" // As go-control-plane's server does.
	r := &discoverypb.DeltaDiscoveryRequest{ResponseNonce: m.Nonce}
	if reason != "" {
		r.ErrorDetail = &statuspb.Status{Message: reason}
	}
	a.send(r)
}

// Every Node object has a row, and says since when it is as it is.
func TestNodeRows(t *testing.T) {
	began := time.Now()
	for name, test := range map[string]struct {
		connect func(*testing.T, *Tracker, *cache.Cache)
		state   State
		reason  string
		since   time.Time // At the latest.
	}{
		"no agent": {func(*testing.T, *Tracker, *cache.Cache) {}, NoAgent, "no agent is connected", began.Add(time.Minute)},
		"a gRPC program is no agent": {
			func(t *testing.T, _ *Tracker, c *cache.Cache) { connect(t, c, "n1", envoy.ClusterType).answer("") },
			NoAgent, "no agent is connected", began.Add(time.Minute),
		},
		"up to date": {
			func(t *testing.T, _ *Tracker, c *cache.Cache) { connect(t, c, "n1", envoy.NodeType).answer("") },
			Forwarding, "", began.Add(time.Minute),
		},
		"applies a change": {
			func(t *testing.T, _ *Tracker, c *cache.Cache) { connect(t, c, "n1", envoy.NodeType) },
			Forwarding, "", began.Add(time.Minute),
		},
		"behind": {
			func(t *testing.T, r *Tracker, c *cache.Cache) {
				connect(t, c, "n1", envoy.NodeType)
				r.kept[0].published = began.Add(-time.Minute)
			},
			Behind, "lacks changes from publish 1 on", began.Add(-time.Minute),
		},
		"behind for longer than publishes are remembered": {
			func(t *testing.T, r *Tracker, c *cache.Cache) {
				connect(t, c, "n1", envoy.NodeType)
				r.kept[0].seq, r.kept[0].published = 7, began.Add(-time.Minute)
			},
			Behind, "", began.Add(-time.Minute),
		},
		"rejects": {
			func(t *testing.T, _ *Tracker, c *cache.Cache) { connect(t, c, "n1", envoy.NodeType).answer("bad name") },
			Rejecting, "the agent rejects Node: bad name", began.Add(time.Minute),
		},
		"not ready": {
			func(t *testing.T, _ *Tracker, c *cache.Cache) {
				a := connect(t, c, "n1", envoy.NodeType)
				a.answer("")
				a.node.Metadata = frontendpb.Report{NotReady: "no Envoy is ready", Since: began.Add(-time.Hour)}.Metadata()
				a.send(&discoverypb.DeltaDiscoveryRequest{})
			},
			NotReady, "no Envoy is ready", began.Add(-time.Hour),
		},
		"disconnected": {
			func(t *testing.T, r *Tracker, c *cache.Cache) {
				a := connect(t, c, "n1", envoy.NodeType)
				a.answer("")
				if rows, _ := r.nodeRows(1); rows[0].State != Forwarding {
					t.Errorf("state %s while it is connected", rows[0].State)
				}
				r.states.nodes["n1"] = spell{Forwarding, began.Add(-time.Hour)}
				a.stream.Close()
			},
			NoAgent, "no agent is connected", time.Now().Add(time.Minute),
		},
	} {
		t.Run(name, func(t *testing.T) {
			r, c := newTestTracker(t, slog.New(slog.DiscardHandler))
			r.SetNodes([]string{"n1"})
			r.Publish(cache.Update{}, &Publication{})
			test.connect(t, r, c)
			rows, _ := r.nodeRows(1)
			if len(rows) != 1 {
				t.Fatalf("rows %+v, want one", rows)
			}
			row := rows[0]
			if row.Node != "n1" || row.State != test.state || !strings.Contains(row.Reason, test.reason) || test.reason == "" && test.state == Forwarding && row.Reason != "" {
				t.Errorf("row %+v, want state %s and reason %q", row, test.state, test.reason)
			}
			if row.Since.After(test.since) || row.Since.IsZero() || test.state == NoAgent && row.Since.Before(began) {
				t.Errorf("since %s, want %s at the latest", row.Since, test.since)
			}
			if row.Connected && row.Version != "v1" {
				t.Errorf("version %q", row.Version)
			}
			again, _ := r.nodeRows(1)
			if !again[0].Since.Equal(row.Since) {
				t.Errorf("since %s at first, and then %s", row.Since, again[0].Since)
			}
		})
	}
}

// Clients that are neither agents nor nodes are counted, and have no row.
func TestProgramsAreNoNodes(t *testing.T) {
	r, c := newTestTracker(t, slog.New(slog.DiscardHandler))
	r.Publish(cache.Update{}, &Publication{})
	connect(t, c, "default/client-1", envoy.ClusterType)
	connect(t, c, "default/client-2", envoy.ListenerType)
	connect(t, c, "n2", envoy.NodeType) // Without an object.
	rows, programs := r.nodeRows(1)
	if len(rows) != 1 || rows[0].Node != "n2" || programs != 2 {
		t.Errorf("%d programs, rows %+v", programs, rows)
	}
}

// What an agent finds on its node stands beside the problems of objects, counts as one, and is about that node alone.
func TestProblemsOfNodes(t *testing.T) {
	r, c := newTestTracker(t, slog.New(slog.DiscardHandler))
	r.SetNodes([]string{"n1"})
	r.Publish(cache.Update{}, &Publication{})
	r.SetProblems([]model.Problem{{Object: "Service default/web", Reason: model.InvalidPort, Message: "port 0"}})
	a := connect(t, c, "n1", envoy.NodeType)
	a.answer("")
	a.node.Metadata = frontendpb.Report{Problems: []model.Problem{{Object: "Node n2", Reason: model.HostObstacle, Message: "mtu"}}}.Metadata()
	a.send(&discoverypb.DeltaDiscoveryRequest{})
	want := model.Problem{Object: "Node n1", Reason: model.HostObstacle, Message: "mtu"}
	if s := r.Status(); len(s.Problems) != 2 || s.Problems[1] != want || len(s.Nodes) != 1 || s.Nodes[0].State != Forwarding || !slices.Equal(s.Nodes[0].Problems, s.Problems[1:]) {
		t.Errorf("status %+v, want the problem %v too, of a node that forwards", s, want)
	}
	a.node.Metadata = frontendpb.Report{}.Metadata()
	a.send(&discoverypb.DeltaDiscoveryRequest{})
	if s := r.Status(); len(s.Problems) != 1 || len(s.Nodes[0].Problems) != 0 {
		t.Errorf("status %+v, though the agent reports no problem any more", s)
	}
}
