// Package status holds the state of the control plane's nodes and Services: which node forwards what was published, what is
// wrong, and how much there is.
//
// In come publishes, what clients acknowledge, problems and numbers; out go traces, metrics, log lines and the Status. The
// package decides nothing about connections.
package status

import (
	"fmt"
	"log/slog"
	"sync"
	"time"

	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"

	"github.com/fairlead/fairlead/cache"
	"github.com/fairlead/fairlead/translate/model"
)

// Config is what a Tracker needs.
type Config struct {
	Cache  cache.Config // The cache is made with the Tracker as its Observer.
	Tracer trace.Tracer
	Meter  metric.Meter
	Log    *slog.Logger
}

// Tracker holds all of it. It is the cache's Observer, and safe for concurrent use.
type Tracker struct {
	tracer  trace.Tracer
	metrics *metrics
	log     *slog.Logger
	cache   *cache.Cache

	// mu guards what follows. The cache may be called under it: the cache calls an Observer without its own lock.
	mu       sync.Mutex
	kept     []*Publication   // In order of seq.
	nodes    map[string]*acks // What nodes have acknowledged.
	limit    int              // Of nodes, before those that are no longer connected are looked for.
	problems []model.Problem  // In order, as logged.
	world    World            // How much there is.

	states states
}

// New returns an empty Tracker, and the cache that it observes.
func New(cfg Config) (*Tracker, *cache.Cache, error) {
	t := &Tracker{tracer: cfg.Tracer, log: cfg.Log, nodes: map[string]*acks{}, states: states{began: time.Now()}}
	cfg.Cache.Observer = t
	t.cache = cache.New(cfg.Cache)
	var err error
	if t.metrics, err = newMetrics(cfg.Meter); err != nil {
		return nil, nil, fmt.Errorf("make metrics: %w", err)
	}
	if err := t.observe(cfg.Meter); err != nil {
		return nil, nil, fmt.Errorf("make metrics: %w", err)
	}
	return t, t.cache, nil
}

// SetWorld sets the numbers of objects.
func (t *Tracker) SetWorld(w World) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.world = w
}
