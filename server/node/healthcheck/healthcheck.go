// Package healthcheck answers load balancers that ask whether a node has endpoints of a Service (healthCheckNodePort), as
// kube-proxy does: byte for byte, since what asks was written for that.
//
// What to answer at which address and port comes in, HTTP goes out, and what cannot be listened on is a Problem. No Envoy
// takes part, so that a node answers while its Envoy is replaced.
package healthcheck

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fairlead/fairlead/translate/model"
)

// patience bounds how long a client may take to send its request, and how long it may keep an idle connection.
const patience = 10 * time.Second

// Check is what is answered at one address and port.
type Check struct {
	Service        model.ServiceKey
	LocalEndpoints int
}

// Server answers checks. It is safe for concurrent use.
type Server struct {
	healthy func() bool
	log     *slog.Logger

	mu       sync.Mutex // Guards the fields below.
	serving  map[netip.AddrPort]*listener
	problems map[netip.AddrPort]model.Problem // Of the checks that are not served.
}

// listener is one address and port that is being listened on.
type listener struct {
	check  atomic.Pointer[Check]
	server *http.Server
}

// New returns a server that answers nothing yet. healthy reports whether the node forwards Services at all; it is called for
// every request, from any goroutine.
func New(healthy func() bool, log *slog.Logger) *Server {
	return &Server{healthy: healthy, log: log, serving: map[netip.AddrPort]*listener{}, problems: map[netip.AddrPort]model.Problem{}}
}

// Serve makes checks what is answered. It tries again to listen where it could not before.
func (s *Server) Serve(checks map[netip.AddrPort]Check) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for at, l := range s.serving {
		if _, wanted := checks[at]; !wanted {
			l.server.Close()
			delete(s.serving, at)
		}
	}
	maps.DeleteFunc(s.problems, func(at netip.AddrPort, _ model.Problem) bool { _, wanted := checks[at]; return !wanted })
	for at, check := range checks {
		if l := s.serving[at]; l != nil {
			l.check.Store(&check)
			continue
		}
		l, err := s.listen(at, &check)
		if err != nil {
			s.note(at, check, err)
			continue
		}
		delete(s.problems, at)
		s.serving[at] = l
	}
}

// listen starts to answer at an address.
func (s *Server) listen(at netip.AddrPort, check *Check) (*listener, error) {
	socket, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at))
	if err != nil {
		return nil, err
	}
	l := &listener{}
	l.check.Store(check)
	l.server = &http.Server{
		Handler:           http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { s.answer(w, *l.check.Load()) }),
		ReadHeaderTimeout: patience, IdleTimeout: patience,
	}
	go func() {
		if err := l.server.Serve(socket); !errors.Is(err, http.ErrServerClosed) {
			s.log.Error("a health check is not answered any more", "address", at, "error", err)
		}
	}()
	return l, nil
}

// note keeps, and logs once, that a check is not served.
func (s *Server) note(at netip.AddrPort, check Check, err error) {
	p := model.Problem{
		Object: model.ObjectKey{Kind: model.KindService, Namespace: check.Service.Namespace, Name: check.Service.Name}.String(),
		Reason: model.PortUnavailable,
		Message: fmt.Sprintf("spec.healthCheckNodePort: %d is not answered on %s: %v; free the port on the node, or give the Service another one",
			at.Port(), at.Addr(), err),
	}
	if s.problems[at] != p {
		s.log.Error("a health check is not answered", "object", p.Object, "problem", p.Message)
	}
	s.problems[at] = p
}

// answer answers any request. The node is to get connections if it has ready endpoints and forwards.
func (s *Server) answer(w http.ResponseWriter, c Check) {
	healthy := s.healthy()
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("X-Load-Balancing-Endpoint-Weight", strconv.Itoa(c.LocalEndpoints))
	if c.LocalEndpoints == 0 || !healthy {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	fmt.Fprintf(w, "{\n\t\"service\": {\n\t\t\"namespace\": %q,\n\t\t\"name\": %q\n\t},\n\t\"localEndpoints\": %d,\n\t\"serviceProxyHealthy\": %t\n}",
		c.Service.Namespace, c.Service.Name, c.LocalEndpoints, healthy)
}

// Problems returns, in order, the checks that are not served, and why.
func (s *Server) Problems() []model.Problem {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.SortedFunc(maps.Values(s.problems), model.Problem.Compare)
}

// Close ends all answers.
func (s *Server) Close() { s.Serve(nil) }
