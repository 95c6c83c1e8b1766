// Package identity authenticates both sides of the xDS port, and authorizes clients.
//
// In come certificates, either files or a Secret that the replicas of the control plane share, and bearer tokens, which
// the API server judges once their signature is found to be its own. Out go gRPC credentials of either side, and one
// answer for each request: may this client be this node and ask for this type. The package never decides what a client
// that may ask is sent, and fails closed: whatever is missing, unknown or unreachable is an error that says what to do
// about it.
//
// A server authenticates by a certificate. A client authenticates by a service-account token that the kubelet made for
// one pod, for Fairlead's audience alone: stolen, it opens nothing else, and no client can claim another's node.
package identity

import (
	"context"
	"errors"
	"log/slog"
	"time"
)

// DefaultServerName is a name that every certificate of the control plane's own authority is made out to, and what an
// agent expects by default. Agents dial addresses that come and go; the name stays.
const DefaultServerName = "fairlead"

// The audiences of tokens, by default. Each kind of client has its own, so that a token that a pod was given to find
// its Services can never act as a node.
const (
	DefaultAgentAudience = "fairlead-agent"
	DefaultGRPCAudience  = "fairlead-grpc"
)

// backdate is how far before the present a new certificate begins to be valid: clocks of nodes differ.
const backdate = time.Hour

// pause waits for a while, or until the context ends.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// repeated logs an error that may come again every second: when it first appears, when it changes, and when it is over.
type repeated struct {
	log  *slog.Logger
	last string
}

func (r *repeated) report(message string, err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	switch {
	case text == r.last:
	case err != nil:
		r.log.Error(message, "error", err)
	default:
		r.log.Info(message + ": over")
	}
	r.last = text
}

// orDiscard returns a logger that is never nil.
func orDiscard(log *slog.Logger) *slog.Logger {
	if log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return log
}

var errNoCertificate = errors.New("the control plane has no serving certificate yet")
