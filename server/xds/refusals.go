package xds

import (
	"log/slog"
	"maps"
	"net"
	"sync"
	"time"
)

// A refused client retries, and a hostile one must not fill a disk: of one reason for one address, one
// line is logged in refusalInterval, and of all of them maxRefusals at most.
const (
	refusalInterval = 10 * time.Second
	maxRefusals     = 512
)

// refusals logs why clients are refused. It is safe for concurrent use.
type refusals struct {
	log *slog.Logger

	mu   sync.Mutex // Guards what follows.
	seen map[refusal]*repetition
}

type refusal struct{ message, address, reason string }

// repetition counts what repeats since it was last logged. The zero value has not been logged.
type repetition struct {
	logged  time.Time
	omitted int
}

// admit reports whether it is to be logged again, and how often it was not since it last was.
func (r *repetition) admit(now time.Time) (omitted int, ok bool) {
	if !r.logged.IsZero() && now.Sub(r.logged) < refusalInterval {
		r.omitted++
		return 0, false
	}
	omitted = r.omitted
	*r = repetition{logged: now}
	return omitted, true
}

// report logs a refusal with its reason, unless it is one too many. When the same is logged again, the line has the
// number of those left out.
func (r *refusals) report(from net.Addr, reason error, message string, args ...any) {
	omitted, ok := r.admit(refusal{message, hostOf(from), reason.Error()}, time.Now())
	if !ok {
		return
	}
	args = append(args, "peer", from.String(), "error", reason)
	if omitted > 0 {
		args = append(args, "omitted", omitted)
	}
	r.log.Warn(message, args...)
}

// hostOf returns an address without its port, which is another one for each connection.
func hostOf(from net.Addr) string {
	host, _, err := net.SplitHostPort(from.String())
	if err != nil {
		return from.String()
	}
	return host
}

func (r *refusals) admit(key refusal, now time.Time) (omitted int, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	again := r.seen[key]
	if again == nil {
		if len(r.seen) >= maxRefusals {
			maps.DeleteFunc(r.seen, func(_ refusal, s *repetition) bool { return now.Sub(s.logged) >= refusalInterval })
		}
		if len(r.seen) >= maxRefusals {
			return 0, false
		}
		again = &repetition{}
		r.seen[key] = again
	}
	return again.admit(now)
}
