// Package controlplane is the control plane's process.
//
// It wires the parts: a source of objects (package source), the translation of those that change, the cache of what
// results, and the servers that hand it out (packages xds and admin). It owns their goroutines and the order in which
// they start and stop, and the state of the whole: whether it is ready, which problems there are, and when each node has what was
// published. It decides nothing about a connection.
package controlplane

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/errgroup"

	"github.com/fairlead/fairlead/cache"
	"github.com/fairlead/fairlead/server/controlplane/events"
	"github.com/fairlead/fairlead/server/controlplane/status"
	"github.com/fairlead/fairlead/server/identity"
	"github.com/fairlead/fairlead/server/ops/admin"
	"github.com/fairlead/fairlead/server/source"
	"github.com/fairlead/fairlead/server/xds"
	"github.com/fairlead/fairlead/translate/grpc"
	"github.com/fairlead/fairlead/translate/model"
)

// scope is the instrumentation scope of the process's metrics and traces.
const scope = "github.com/fairlead/fairlead/server"

// stuckAfter is how long a change may wait for the translator before the process counts as stuck.
const stuckAfter = time.Minute

// maxConnectionAge is when clients are asked to reconnect, so that they spread over replicas that were added meanwhile. One that
// returns brings the versions that it has, and gets what differs.
const maxConnectionAge = time.Hour

// Source sets the cluster's objects in a queue until the context ends.
type Source interface {
	Run(context.Context, *source.Queue) error
}

// Config is what a Server needs.
type Config struct {
	Source  Source
	Version string      // Of the program, for the status; may be empty.
	Domain  grpc.Domain // The cluster's DNS domain, by which proxyless gRPC clients name Services; empty means grpc.DefaultDomain.
	Listen  string      // The host:port that serves xDS.
	Admin   string      // The host:port that serves health, metrics and status.

	// Certificates authenticate the control plane to its clients, and Identity binds a client to its node or pod. Without them
	// anybody who reaches Listen can read everything, under any name.
	Certificates *identity.Certificates
	Identity     *identity.Authenticator

	// Events, of which the rest is filled in, has the process write Kubernetes Events; nil: it writes none.
	Events *events.Config

	Traces  trace.TracerProvider
	Meters  metric.MeterProvider
	Metrics http.Handler // Shows what Meters measure.
	Log     *slog.Logger
}

// Server is a control plane.
type Server struct {
	cfg        Config
	queue      *source.Queue
	cache      *cache.Cache
	tracker    *status.Tracker
	translator *translator
	serving    chan struct{} // Closed when clients can connect.
	stopping   atomic.Bool
	addr       net.Addr // Meaningful once serving.
	admin      net.Listener
}

// New returns a control plane that listens on its admin address, and does all else in Run. An error is about the
// configuration.
func New(cfg Config) (*Server, error) {
	if _, _, err := net.SplitHostPort(cfg.Listen); err != nil {
		return nil, fmt.Errorf("address to serve xDS on: %w", err)
	}
	cfg.Domain = cmp.Or(cfg.Domain, grpc.DefaultDomain)
	meter, tracer := cfg.Meters.Meter(scope), cfg.Traces.Tracer(scope)
	s := &Server{cfg: cfg, queue: source.NewQueue(), serving: make(chan struct{})}
	var err error
	s.tracker, s.cache, err = status.New(status.Config{
		Cache: cache.Config{Derive: derive(cfg.Domain), Failed: s.queue.Wake}, Tracer: tracer, Meter: meter, Log: cfg.Log,
	})
	if err != nil {
		return nil, err
	}
	s.translator = newTranslator(&translator{domain: cfg.Domain, queue: s.queue, tracker: s.tracker, cache: s.cache, log: cfg.Log})
	if err := s.observe(meter); err != nil {
		return nil, fmt.Errorf("make metrics: %w", err)
	}
	if s.admin, err = net.Listen("tcp", cfg.Admin); err != nil {
		return nil, fmt.Errorf("answer health and metrics: %w", err)
	}
	return s, nil
}

// AdminAddr returns the address that serves health, metrics and status.
func (s *Server) AdminAddr() net.Addr { return s.admin.Addr() }

// Addr waits until clients can connect and returns the address for that.
func (s *Server) Addr(ctx context.Context) (net.Addr, error) {
	select {
	case <-s.serving:
		return s.addr, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Run serves until the context ends, which returns nil, or a part fails. It may be called once. When it returns, all
// that it started has ended: the parts stop in the reverse order of their start, within some seconds.
func (s *Server) Run(ctx context.Context) error {
	group, ended := errgroup.WithContext(ctx) // ended is over with ctx, or when a part fails.
	var stops []func()
	for _, part := range []func(context.Context) error{s.serveAdmin, s.tracker.Run, s.translator.run, s.source, s.renewCertificates, s.serve, s.writeEvents} {
		ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
		done := make(chan struct{})
		group.Go(func() error {
			defer close(done)
			return part(ctx)
		})
		stops = append(stops, func() {
			cancel()
			<-done
		})
	}
	<-ended.Done()
	if ctx.Err() != nil {
		s.cfg.Log.Info("stopping")
	}
	s.stopping.Store(true) // Before the parts stop, so that /readyz sends no new clients.
	for _, stop := range slices.Backward(stops) {
		stop()
	}
	return group.Wait()
}

func (s *Server) serveAdmin(ctx context.Context) error {
	return admin.Serve(ctx, s.admin, admin.Config{
		Metrics: s.cfg.Metrics,
		Live:    s.stuck,
		Ready:   s.notReady,
		Status:  func() any { return s.Status() },
		Agents:  func() any { return s.Agents() },
		Explain: func(service string, nodes []string) (any, error) { return s.Explain(service, nodes) },
		Service: func(service string) (any, error) { return s.ServiceStatus(service) },
		Log:     s.cfg.Log,
	})
}

func (s *Server) source(ctx context.Context) error { return s.cfg.Source.Run(ctx, s.queue) }

// serve serves xDS once the first state is published and there is a serving certificate. Until then the port is closed,
// so that a client goes on to another replica instead of waiting for this one.
func (s *Server) serve(ctx context.Context) error {
	for _, ready := range []<-chan struct{}{s.translator.ready, s.certified()} {
		select {
		case <-ready:
		case <-ctx.Done():
			return nil
		}
	}
	l, err := net.Listen("tcp", s.cfg.Listen)
	if err != nil {
		return fmt.Errorf("serve xDS: %w", err)
	}
	s.cfg.Log.Info("serving xDS", "address", l.Addr().String())
	s.addr = l.Addr()
	close(s.serving)
	config := xds.Config{Cache: s.cache, Log: s.cfg.Log, StopTimeout: 2 * time.Second, MaxConnectionAge: maxConnectionAge}
	if s.cfg.Certificates != nil {
		config.Credentials = s.cfg.Certificates.Credentials()
	}
	if s.cfg.Identity != nil {
		config.Authenticate, config.Authorize = s.authenticate, s.cfg.Identity.Authorize
	}
	return xds.New(config).Serve(ctx, l)
}

// certified returns a channel that is closed once there is a certificate, if there is to be one.
func (s *Server) certified() <-chan struct{} {
	if s.cfg.Certificates != nil {
		return s.cfg.Certificates.Ready()
	}
	unneeded := make(chan struct{})
	close(unneeded)
	return unneeded
}

// renewCertificates keeps the certificates valid.
func (s *Server) renewCertificates(ctx context.Context) error {
	if s.cfg.Certificates == nil {
		return nil
	}
	return s.cfg.Certificates.Run(ctx)
}

// writeEvents writes Kubernetes Events about what is wrong, once clients can connect: a replica that starts has no agent yet.
func (s *Server) writeEvents(ctx context.Context) error {
	if s.cfg.Events == nil {
		return nil
	}
	select {
	case <-s.serving:
	case <-ctx.Done():
		return nil
	}
	config := *s.cfg.Events
	config.Problems, config.Nodes, config.Log = s.tracker.Problems, s.tracker.Nodes, s.cfg.Log
	if at, ok := s.AdminAddr().(*net.TCPAddr); ok {
		config.AdminPort = at.Port
	}
	return events.New(config).Run(ctx)
}

// stuck returns why the process should be restarted.
func (s *Server) stuck() error {
	if oldest, n := s.queue.Oldest(); n > 0 && time.Since(oldest) > stuckAfter {
		return fmt.Errorf("%d changes wait, the oldest since %s", n, oldest.Format(time.RFC3339))
	}
	return nil
}

// notReady returns why clients cannot be served yet, or no longer.
func (s *Server) notReady() error {
	if s.stopping.Load() {
		return errors.New("stopping")
	}
	if s.served() {
		return nil
	}
	var kinds []string
	for _, k := range s.queue.Unsynced() {
		kinds = append(kinds, string(k)+"s")
	}
	switch {
	case len(kinds) > 0:
	case s.cfg.Certificates != nil && s.cfg.Certificates.Expires().IsZero():
		return errors.New("waiting for a serving certificate: the log says why there is none")
	default:
		return errors.New("translating the first complete state")
	}
	reason := "waiting for the first complete list of " + strings.Join(kinds, ", ")
	for _, p := range s.tracker.Problems() {
		if p.Reason == model.Unreadable {
			reason += "; " + p.Object + ": " + p.Message
		}
	}
	return errors.New(reason)
}

func (s *Server) served() bool {
	select {
	case <-s.serving:
		return true
	default:
		return false
	}
}
