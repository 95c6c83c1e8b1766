package packets

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/fairlead/fairlead/server/lab"
)

// cell is one way to one Service.
type cell struct {
	service *service
	kind    kind
	from    origin
	family  corev1.IPFamily
}

func (c cell) String() string {
	s := c.service
	return fmt.Sprintf("%s over %s from %s to %s: %s, internal %s, external %s, %s",
		s.variant, c.family, c.from, c.kind, s.name(), s.internal, s.external, s.state.name)
}

// answers are what happened to a cell's connections: who answered and whom they saw as the client, or why nobody did.
type answers map[answer]bool

type answer struct{ by, sees string }

// Ends without an answer.
const (
	refused = "refused"
	dropped = "dropped"
	barred  = "not permitted" // The client's own node told it at once, by EPERM.
)

// endings name the kinds of failures.
var endings = map[lab.Failure]string{
	lab.Refused: refused, lab.TimedOut: dropped, lab.Filtered: barred, lab.Closed: "closed", lab.Reset: "reset",
}

// String sums them up: "local and remote see the client".
func (a answers) String() string {
	bySource := map[string][]string{}
	for k := range a {
		bySource[k.sees] = append(bySource[k.sees], k.by)
	}
	var parts []string
	for _, sees := range slices.Sorted(maps.Keys(bySource)) {
		by := slices.Sorted(slices.Values(bySource[sees]))
		switch {
		case sees == "":
			parts = append(parts, by...)
		case len(by) == 1:
			parts = append(parts, by[0]+" sees the "+sees)
		default:
			parts = append(parts, strings.Join(by, " and ")+" see the "+sees)
		}
	}
	return strings.Join(parts, "; ")
}

// effort is how hard a cell is tried.
type effort struct {
	exchanges int           // At most; fewer where every endpoint has answered.
	failures  int           // How many exchanges without an answer are enough.
	silence   time.Duration // How long nothing at all must happen for a packet to count as dropped.
	workers   int           // For each origin, at once.
}

// At first, and for cells in which the worlds differ. Of two endpoints one that should answer is missing from 12 exchanges once
// in 2,000 cells, and from 60 never. The silence is longer than the second that a client waits until it sends a SYN again: where a
// TCP connection is refused by ICMP, as kube-proxy does, it is only then that the kernel lets the client know.
var (
	quick    = effort{exchanges: 12, failures: 1, silence: 2500 * time.Millisecond, workers: 16}
	thorough = effort{exchanges: 60, failures: 6, silence: 5 * time.Second, workers: 4}
)

// try makes a cell's exchanges.
func (w *world) try(ctx context.Context, c cell, e effort) answers {
	seen := answers{}
	failures := 0
	for range e.exchanges {
		a := w.exchange(ctx, c, e.silence)
		seen[a] = true
		if a.sees == "" {
			failures++
		}
		enough := !c.service.variant.affinity && len(seen) >= max(2, len(c.service.state.endpoints))
		if c.kind == healthCheck || failures == e.failures || enough {
			break
		}
	}
	return seen
}

// exchange makes one exchange, on a connection or from a port of its own.
func (w *world) exchange(ctx context.Context, c cell, silence time.Duration) answer {
	ctx, cancel := context.WithTimeout(ctx, silence)
	defer cancel()
	client := w.clients[c.from]
	to := c.service.target(c.kind, c.family, address(w.nodes[0].Host, c.family))
	if c.kind == healthCheck {
		return answer{by: askHealth(ctx, client, to)}
	}
	network := map[corev1.Protocol]lab.Network{corev1.ProtocolTCP: lab.TCP, corev1.ProtocolUDP: lab.UDP, corev1.ProtocolSCTP: lab.SCTP}
	a, err := client.Ask(ctx, lab.Request{Network: network[c.service.variant.protocol], To: to, Size: 500})
	if err == nil {
		return answer{by: a.Server, sees: w.source(client, a.Client.Addr())}
	}
	if end, known := endings[lab.FailureOf(err)]; known {
		return answer{by: end}
	}
	return answer{by: err.Error()}
}

// askHealth asks as a load balancer does, and returns all that matters to one.
func askHealth(ctx context.Context, client *lab.Host, to netip.AddrPort) string {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+to.String()+"/healthz", nil)
	if err != nil {
		return err.Error()
	}
	h := &http.Client{Transport: &http.Transport{DialContext: client.DialContext, DisableKeepAlives: true}}
	said, err := h.Do(r)
	if err != nil {
		if end, known := endings[lab.FailureOf(err)]; known {
			return end
		}
		return err.Error()
	}
	defer said.Body.Close()
	body, err := io.ReadAll(said.Body)
	if err != nil {
		return err.Error()
	}
	weight := said.Header.Get("X-Load-Balancing-Endpoint-Weight")
	return fmt.Sprintf("%d, %s, weight %s: %s", said.StatusCode, said.Header.Get("Content-Type"), weight, strings.Join(strings.Fields(string(body)), " "))
}

// results are a world's answers.
type results map[cell]answers

// tryAll tries cells: from all origins at once, from each with some workers. The cells of one client and Service are tried one
// after the other, since with affinity the first of them decides for all.
func (w *world) tryAll(ctx context.Context, cells []cell, e effort) results {
	type client struct {
		service *service
		family  corev1.IPFamily
	}
	jobs := map[origin]map[client][]cell{}
	for _, c := range cells {
		if jobs[c.from] == nil {
			jobs[c.from] = map[client][]cell{}
		}
		key := client{c.service, c.family}
		jobs[c.from][key] = append(jobs[c.from][key], c)
	}
	all := results{}
	var mu sync.Mutex // Guards all.
	var work sync.WaitGroup
	for _, byClient := range jobs {
		next := make(chan []cell, len(byClient))
		for _, job := range byClient { // In any order: dropped ones take long, and none shall wait for many of them.
			next <- job
		}
		close(next)
		for range e.workers {
			work.Go(func() {
				for job := range next {
					for _, c := range job {
						a := w.try(ctx, c, e)
						mu.Lock()
						all[c] = a
						mu.Unlock()
					}
				}
			})
		}
	}
	work.Wait()
	return all
}
