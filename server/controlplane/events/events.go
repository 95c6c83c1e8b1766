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
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/flowcontrol"

	"github.com/fairlead/fairlead/server/controlplane/status"
	"github.com/fairlead/fairlead/translate/model"
)

const (
	// interval is how often the Writer looks for something to write.
	interval = 5 * time.Second
	// repeat is how often it writes again what lasts. An API server forgets an Event after an hour, unless told otherwise.
	repeat = 30 * time.Minute

	// perSecond and burst bound the Events of a replica. Ten thousand bad Services are one mistake. client-go bounds those of a
	// single object besides.
	perSecond = 1
	burst     = 50

	// maxMessage is the longest message that the API takes, in bytes; a longer one ends in cut.
	maxMessage = 1024
	cut        = "..."

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
	cfg      Config
	recorder record.EventRecorder
	limit    flowcontrol.RateLimiter
	http     *http.Client
	now      func() time.Time

	problems map[model.Problem]time.Time // When each was last written that there is still.
	nodes    map[string]*spell           // Nodes that do not forward.
	failed   error                       // What last failed in the present look.
	logged   string                      // What failed in the look before.
}

// New returns a Writer that writes nothing before Run.
func New(cfg Config) *Writer {
	return &Writer{
		cfg: cfg, limit: flowcontrol.NewTokenBucketRateLimiter(perSecond, burst), now: time.Now,
		http:     &http.Client{Timeout: askTimeout, Transport: &http.Transport{DisableKeepAlives: true}},
		problems: map[model.Problem]time.Time{}, nodes: map[string]*spell{},
	}
}

// Run writes until ctx ends. That the API server does not take an Event is logged by client-go, and changes nothing else.
func (w *Writer) Run(ctx context.Context) error {
	broadcaster := record.NewBroadcaster(record.WithContext(ctx))
	defer broadcaster.Shutdown()
	broadcaster.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: w.cfg.Client.CoreV1().Events("")})
	w.recorder = broadcaster.NewRecorder(scheme.Scheme, corev1.EventSource{Component: component, Host: w.cfg.Pod})
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
	if failure != "" && failure != w.logged {
		w.cfg.Log.Warn("cannot write Kubernetes Events", "error", err)
	}
	w.logged = failure
}

// write writes an Event about an object, and reports whether no more need be done: not if there have been too many, or if the
// API server does not answer; but if the object does not exist, there is nothing that an Event could be about.
func (w *Writer) write(ctx context.Context, object model.ObjectKey, kind, reason, message string) (done bool) {
	if !w.limit.TryAccept() {
		return false
	}
	reference, err := w.reference(ctx, object)
	switch {
	case apierrors.IsNotFound(err):
		return true
	case err != nil:
		w.failed = err
		return false
	}
	if len(message) > maxMessage {
		message = strings.ToValidUTF8(message[:maxMessage-len(cut)], "") + cut
	}
	w.recorder.Event(reference, kind, reason, message)
	return true
}
