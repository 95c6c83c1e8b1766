// Package upstream is the agent's xDS client of the control plane, and stores the resources that the node has acknowledged.
//
// In come the control plane's addresses and delta xDS responses. Out go Updates, one at a time per resource type, to
// the one goroutine that owns the node; and, when that goroutine reports that the node really forwards so, the ACK. The
// package also writes acknowledged resources to a state file, so that a node that restarts while no control plane answers
// forwards as before.
//
// The package never reads a resource's content, never decides what an update means, never touches Envoy or the kernel, and
// never drops a resource because a control plane is silent, has ended or is new: only removed_resources removes.
//
// Three rules keep the node and the control plane in agreement:
//   - A version counts as known when the node acknowledged it, not when it was received. A reconnect resumes from the
//     known versions, so a server sends what is missing and nothing else.
//   - At most one update of a type is with the agent; later responses of that type are merged and wait. Under load the
//     merged update grows by itself, and no timer is needed.
//   - A new stream subscribes to a type only when no update of that type is with the agent. Otherwise the client would send
//     a version that the node is about to replace, and the server would never correct a change that it reverted meanwhile.
package upstream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"github.com/fairlead/fairlead/translate/frontendpb"
)

// Config has the node's name, the control planes' addresses and the path of the last good state.
type Config struct {
	// Node is the node's name, sent as node.id. Required.
	Node string
	// Addresses are the control planes, as host:port. They are equal replicas: the client tries them in random order, the
	// next one when one fails. SetAddresses replaces them; without any the client waits for that.
	Addresses []string
	// Types are the type URLs to which the client subscribes, in this order, each with the wildcard "*". At least one is
	// required.
	Types []string
	// DialOptions are added to the client's own. They must contain transport credentials, so that a client without TLS is a
	// decision and never an omission.
	DialOptions []grpc.DialOption
	// StatePath is the state file. Empty: the client keeps no state over a restart. It makes the folder if that is missing.
	StatePath string
	// Version is the agent's version, which the control plane shows. May be empty.
	Version string
	// Logger is the client's log; nil means slog.Default.
	Logger *slog.Logger
}

// The bounds of the backoff between connection attempts. The base spreads the clients of a replica that stopped; the
// maximum is how late a node may notice that a control plane is available again.
const (
	baseBackoff = 500 * time.Millisecond
	maxBackoff  = 15 * time.Second
)

// Client keeps a stream to one control plane at a time. Make it with New, then call Run. Its methods may be called from any
// goroutine.
type Client struct {
	config    Config
	log       *slog.Logger
	known     *store
	addresses addresses

	updates chan Update
	answers chan answer   // From Ack and Nack to the session.
	news    chan struct{} // From Report to the session: the report has changed.
	events  chan event    // From the stream to the session.
	done    chan struct{} // Closed when Run returns.

	// wait pauses between two rounds of attempts, for a random time below the ceiling. Tests replace it.
	wait func(ctx context.Context, ceiling time.Duration)

	report atomic.Pointer[frontendpb.Report] // The last one.

	mu     sync.Mutex // Guards status alone.
	status Status
}

// Status is the client's state at one moment, for the status page and metrics.
type Status struct {
	Connected bool         `json:"connected"`           // A stream is open.
	Address   string       `json:"address,omitempty"`   // To which control plane.
	Since     time.Time    `json:"since"`               // When Connected last changed.
	LastError string       `json:"lastError,omitempty"` // Why the last stream ended or failed to open; the next success does not clear it.
	Streams   uint64       `json:"streams"`             // Streams opened.
	Types     []TypeStatus `json:"types"`               // One for each subscribed type, in the order of Config.Types.
}

// TypeStatus is the status of one resource type.
type TypeStatus struct {
	Type       string `json:"type"`
	Resources  int    `json:"resources"`  // Resources that the node acknowledged and still has.
	Responses  uint64 `json:"responses"`  // Responses received.
	Acked      uint64 `json:"acked"`      // Responses acknowledged to the control plane.
	Nacked     uint64 `json:"nacked"`     // Responses rejected.
	InProgress bool   `json:"inProgress"` // The agent has an update that it has not answered.
}

// New checks the configuration and loads the state file. It logs that a state file is missing or damaged, and does not fail:
// the node then waits for the first control plane.
func New(config Config) (*Client, error) {
	if err := check(config); err != nil {
		return nil, err
	}
	log := config.Logger
	if log == nil {
		log = slog.Default()
	}
	c := &Client{
		config:  config,
		log:     log,
		known:   newStore(config.StatePath, config.Types, log),
		updates: make(chan Update),
		answers: make(chan answer),
		news:    make(chan struct{}, 1),
		events:  make(chan event),
		done:    make(chan struct{}),
		wait:    wait,
		status:  Status{Since: time.Now()},
	}
	c.report.Store(&frontendpb.Report{})
	c.addresses.changed = make(chan struct{})
	c.addresses.set(config.Addresses)
	for _, t := range config.Types {
		c.status.Types = append(c.status.Types, TypeStatus{Type: t})
	}
	return c, nil
}

func check(config Config) error {
	if config.Node == "" {
		return errors.New("upstream: no node name: set the name of the Node object that the agent runs on")
	}
	if len(config.Types) == 0 {
		return errors.New("upstream: no resource types to subscribe to")
	}
	for _, address := range config.Addresses {
		if _, _, err := net.SplitHostPort(address); err != nil {
			return fmt.Errorf("upstream: control plane %q is not host:port: %w", address, err)
		}
		conn, err := dial(config, address) // It does not connect yet; it rejects addresses to which it never could.
		if err != nil {
			return fmt.Errorf("upstream: control plane %q: %w", address, err)
		}
		_ = conn.Close()
	}
	return nil
}

// Loaded returns the resources that the node acknowledged, by type URL and name. Before Run that is the content of the
// state file, from which a node forwards until a control plane answers. The client sends these versions to the control plane,
// which does not send the resources again: the caller of Run has to use those of Loaded first. The maps are the caller's;
// the resources are shared and immutable.
func (c *Client) Loaded() map[string]map[string]Resource { return c.known.snapshot() }

// Updates returns the channel from which the node's reconciler receives updates. It has to answer every update, by Ack or by
// Nack: only then does the client send the next one of its type. The channel is never closed.
func (c *Client) Updates() <-chan Update { return c.updates }

// Ack reports that the node forwards as the update says. The client stores its versions as known, writes the state, and sends
// the ACK to the control plane unless the stream of the update has ended.
func (c *Client) Ack(u Update) { c.answer(answer{update: u}) }

// Nack reports that the node could not apply the update, and why. The node may have applied a part of it: at the next reconnect
// the client requests all of the update's resources again.
func (c *Client) Nack(u Update, err error) {
	if err == nil {
		err = errors.New("rejected without a reason")
	}
	c.answer(answer{update: u, err: err})
}

// Report tells the control plane whether the node forwards, now and with each stream that opens later. It does not wait.
func (c *Client) Report(r frontendpb.Report) {
	c.report.Store(&r)
	select {
	case c.news <- struct{}{}:
	default: // The session has yet to look; it will see this report.
	}
}

func (c *Client) answer(a answer) {
	select {
	case c.answers <- a:
	case <-c.done: // The session has ended; the control plane sends the update again after the next start.
	}
}

// Status returns a copy of the client's status.
func (c *Client) Status() Status {
	c.mu.Lock()
	status := c.status
	status.Types = slices.Clone(status.Types)
	c.mu.Unlock()
	for i, t := range status.Types {
		status.Types[i].Resources = c.known.count(t.Type)
	}
	return status
}

// Run keeps a stream to one of the control planes until ctx ends, and then writes the state a last time. It returns an error only
// if that fails. It may be called once.
func (c *Client) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer close(c.done)

	stop := make(chan struct{})
	written := make(chan error, 1)
	go func() { written <- c.known.keep(stop) }()

	var connecting sync.WaitGroup
	connecting.Go(func() { c.connect(ctx) })
	newSession(c).run(ctx)
	connecting.Wait()

	close(stop)
	return <-written
}
