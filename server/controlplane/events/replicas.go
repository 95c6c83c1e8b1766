package events

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fairlead/fairlead/server/controlplane/status"
	"github.com/fairlead/fairlead/translate/model"
)

// askTimeout is how long another replica may take to answer.
const askTimeout = 2 * time.Second

// maxAnswer is the longest answer of another replica that is read, in bytes: of fifty thousand nodes with long names.
const maxAnswer = 16 << 20

// replica is a replica of the control plane that is ready.
type replica struct{ pod, address string }

// replicas returns those that are ready, each once. The list is from the API server's cache, which costs it nothing.
func (w *Writer) replicas(ctx context.Context) ([]replica, error) {
	list, err := w.cfg.Client.DiscoveryV1().EndpointSlices(w.cfg.Service.Namespace).List(ctx, metav1.ListOptions{
		LabelSelector: discoveryv1.LabelServiceName + "=" + w.cfg.Service.Name, ResourceVersion: "0",
	})
	if err != nil {
		return nil, fmt.Errorf("by the EndpointSlices of Service %s: %w", w.cfg.Service, err)
	}
	known := map[string]bool{}
	var ready []replica
	for _, s := range list.Items {
		for _, e := range s.Endpoints {
			isReady := e.Conditions.Ready == nil || *e.Conditions.Ready
			if isReady && e.TargetRef != nil && len(e.Addresses) > 0 && !known[e.TargetRef.Name] {
				known[e.TargetRef.Name] = true
				ready = append(ready, replica{e.TargetRef.Name, e.Addresses[0]})
			}
		}
	}
	return ready, nil
}

// picked reports whether this replica writes about an object: of all that are ready it has the highest hash of both names. When
// a replica comes or goes only the objects change hands that it gets or had.
func (w *Writer) picked(object model.ObjectKey, replicas []replica) bool {
	var best string
	var highest [sha256.Size]byte
	for _, r := range replicas {
		if sum := sha256.Sum256([]byte(r.pod + " " + object.String())); best == "" || bytes.Compare(sum[:], highest[:]) > 0 {
			best, highest = r.pod, sum
		}
	}
	return best == w.cfg.Pod
}

// agentsElsewhere returns the states of the nodes whose agents are connected to other replicas, and whether all of those have
// answered.
func (w *Writer) agentsElsewhere(ctx context.Context, replicas []replica) (states map[string]status.State, complete bool) {
	states, complete = map[string]status.State{}, true
	for _, r := range replicas {
		if r.pod == w.cfg.Pod {
			continue
		}
		agents, err := w.ask(ctx, r)
		if err != nil {
			w.cfg.Log.Debug("another replica does not say which agents are connected to it", "pod", r.pod, "error", err)
			complete = false
		}
		for name, state := range agents {
			states[name] = state
		}
	}
	return states, complete
}

// ask asks a replica which agents are connected to it.
func (w *Writer) ask(ctx context.Context, r replica) (map[string]status.State, error) {
	url := "http://" + net.JoinHostPort(r.address, strconv.Itoa(w.cfg.AdminPort)) + "/agents"
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := w.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", url, resp.Status)
	}
	var agents map[string]status.State
	err = json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(&agents)
	return agents, err
}
