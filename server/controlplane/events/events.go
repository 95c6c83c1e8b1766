// Package events writes Kubernetes Events about what is wrong with objects and nodes, to where people look: kubectl describe.
//
// In come the problems of objects and the states of nodes from this replica's status, and what the other replicas answer about
// nodes. Out go Events: a Warning when something is wrong, a Normal one when that is over. The package decides nothing about
// either, and remembers nothing but what it has written itself.
//
// Each object has one replica that writes about it: of the ready ones, that which a hash of the object's name picks. A node
// whose agent is connected is written about by the replica that the agent is connected to, which alone knows why.
package events

import (
	"context"
	"log/slog"
	"net/http"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/flowcontrol"

	"github.com/fairlead/fairlead/server/controlplane/status"
	"github.com/fairlead/fairlead/translate/model"
)

const (
	// interval is how often the Writer looks for something to write.
	interval = 5 * time.Second
	// repeat is how often it writes again what lasts. An API server forgets an Event after an hour, unless told otherwise.
	repeat = 30 * time.Minute

	// perSecond and burst bound the Events of a replica: ten thousand bad Services are one mistake.
	perSecond = 1
	burst     = 50

	// component is who the Events say that they come from.
	component = "fairlead"
)

// Config is what a Writer needs.
type Config struct {
	Client    kubernetes.Interface
	Service   types.NamespacedName // The Service whose ready endpoints are the replicas.
	Pod       string               // The name of this replica's pod.
	AdminPort int                  // The same of every replica.
	Problems  func() []model.Problem
	Nodes     func() []status.Node
	Log       *slog.Logger
}

// Writer writes Events. Its state belongs to the goroutine of Run.
type Writer struct {
	cfg   Config
	limit flowcontrol.RateLimiter
	http  *http.Client
	now   func() time.Time

	problems map[model.Problem]time.Time // When each was last told that there is still.
	found    map[model.Problem]time.Time // The same, of problems that agents have found on their nodes.
	nodes    map[string]*spell           // Nodes that do not forward.
	failed   error                       // What last failed in the present look.
	logged   string                      // What failed in the look before.
}

// New returns a Writer that writes nothing before Run.
func New(cfg Config) *Writer {
	return &Writer{
		cfg: cfg, limit: flowcontrol.NewTokenBucketRateLimiter(perSecond, burst), now: time.Now,
		http:     &http.Client{Timeout: askTimeout, Transport: &http.Transport{DisableKeepAlives: true}},
		problems: map[model.Problem]time.Time{}, found: map[model.Problem]time.Time{}, nodes: map[string]*spell{},
	}
}

// Run writes until ctx ends. What the API server does not take is logged and tried again.
func (w *Writer) Run(ctx context.Context) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		w.look(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// look writes what is new, what lasts, and what is over.
func (w *Writer) look(ctx context.Context) {
	w.failed = nil
	replicas, err := w.replicas(ctx)
	if err == nil {
		w.lookAtProblems(ctx, replicas)
		w.lookAtNodes(ctx, replicas)
		err = w.failed
	}
	failure := ""
	if err != nil {
		failure = err.Error()
	}
	if failure != "" && failure != w.logged && ctx.Err() == nil {
		w.cfg.Log.Warn("cannot write Kubernetes Events", "error", err)
	}
	w.logged = failure
}
