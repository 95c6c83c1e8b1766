package inspect

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fairlead/fairlead/server/controlplane/status"
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

func TestStatus(t *testing.T) {
	good := status.Status{Ready: true, Publish: 7, Nodes: []status.Node{{Node: "n1", Applied: 7}}}
	behind, nacked, problem, unready := good, good, good, good
	behind.Nodes = []status.Node{{Node: "n1", Applied: 5, LagSeconds: 1.5}}
	nacked.Nodes = []status.Node{{Node: "n1", Applied: 7, Types: []status.Type{{Type: "Cluster", Nack: "bad name"}}}}
	problem.Problems = []model.Problem{{Object: "Service default/x", Reason: model.InvalidAddress, Message: "fix it"}}
	unready.Ready, unready.Reason = false, "still listing"
	tests := map[string]struct {
		status status.Status
		want   string
		err    error
	}{
		"good":    {good, "n1     7         up to date", nil},
		"behind":  {behind, "behind for 1.5 s", ErrUnhealthy},
		"nacked":  {nacked, "rejects Cluster: bad name", ErrUnhealthy},
		"problem": {problem, "Service default/x: InvalidAddress: fix it", ErrUnhealthy},
		"unready": {unready, "no: still listing", ErrUnhealthy},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			var b bytes.Buffer
			err := Status(t.Context(), []string{replica(t, "/debug/status", func() any { return test.status })}, &b)
			if !errors.Is(err, test.err) || (err != nil) != (test.err != nil) {
				t.Errorf("error %v, want %v", err, test.err)
			}
			if !strings.Contains(b.String(), test.want) {
				t.Errorf("no %q in\n%s", test.want, b.String())
			}
		})
	}
}

// A replica that does not answer is named, and the others are shown.
func TestStatusWithoutReplica(t *testing.T) {
	there := replica(t, "/debug/status", func() any { return status.Status{Ready: true, Nodes: []status.Node{{Node: "n1"}}} })
	var b bytes.Buffer
	err := Status(t.Context(), []string{"127.0.0.1:1", there}, &b)
	if !errors.Is(err, ErrUnhealthy) || !strings.Contains(b.String(), "127.0.0.1:1 does not answer") || !strings.Contains(b.String(), "n1") {
		t.Errorf("error %v, text\n%s", err, b.String())
	}
}

// Wait ends when each node has the change, whichever replica its agent is connected to.
func TestWait(t *testing.T) {
	var late atomic.Bool
	first := replica(t, "/debug/service", func() any {
		return status.Service{Nodes: []status.ServiceNode{{Node: "n1", Connected: true, Forwards: true}, {Node: "n2"}, {Node: "n3"}}}
	})
	second := replica(t, "/debug/service", func() any {
		n2 := status.ServiceNode{Node: "n2", Connected: true, Forwards: late.Swap(true)}
		return status.Service{Nodes: []status.ServiceNode{{Node: "n1"}, n2, {Node: "n3"}}}
	})
	if err := Wait(t.Context(), []string{first, second}, "default/web", false); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := Wait(ctx, []string{first, second}, "default/web", true); err == nil || !strings.Contains(err.Error(), "n3") {
		t.Errorf("a node without an agent is not waited for: %v", err)
	}
}

func TestWaitForNobody(t *testing.T) {
	empty := replica(t, "/debug/service", func() any { return status.Service{} })
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := Wait(ctx, []string{empty}, "default/web", false); err == nil || !strings.Contains(err.Error(), "no agent is connected") {
		t.Errorf("error: %v", err)
	}
}
