// Package upstream is the agent's xDS client of the control plane, and the node's memory of what it was told.
//
// In come the control plane's addresses and delta xDS responses. Out go Updates, one at a time per resource type, to
// the one goroutine that owns the node; and, when that goroutine says that the node really forwards so, the ACK. What
// was acknowledged is also kept in a state file, so that a node that restarts while no control plane answers forwards
// as before.
//
// The package never looks into a resource, never decides what an update means, never touches Envoy or the kernel, and
// never forgets a resource because a control plane is silent, gone or new: only removed_resources removes.
//
// Three rules keep the node and the control plane in agreement:
//   - A version counts as known when the node acknowledged it, not when it was received. A reconnect resumes from the
//     known versions, so a server sends what is missing and nothing else.
//   - At most one update of a type is with the agent; later responses of that type are merged and wait. Under load the
//     merged update grows by itself, and no timer is needed.
//   - A new stream subscribes to a type only when no update of that type is with the agent. Otherwise the server would
//     be told a version that the node is about to leave, and a change taken back meanwhile would never be corrected.
package upstream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
)

// Config says who the node is, where control planes are and where the last good state is kept.
type Config struct {
	// Node is the node's name, sent as node.id. Required.
	Node string
	// Addresses are the control planes, as host:port. They are equal replicas: tried in random order, the next one
	// when one fails. SetAddresses replaces them; without any the client waits for that.
	Addresses []string
	// Types are the type URLs to subscribe to, each with the wildcard "*". At least one is required. They are
	// subscribed in this order.
	Types []string
	// DialOptions are added to the client's own. They have to hold transport credentials, so that a client without
	// TLS is somebody's decision and never an omission.
	DialOptions []grpc.DialOption
	// StatePath is the state file. Empty: nothing is kept over a restart. The folder is made when it is missing.
	StatePath string
	// Logger is where the client reports; nil means slog.Default.
	Logger *slog.Logger
}

// The bounds of the waits between connection attempts. The base spreads the clients of a replica that stopped; the
// maximum is how late a node may notice that a control plane is back.
const (
	baseBackoff = 500 * time.Millisecond
	maxBackoff  = 15 * time.Second
)

// Client follows one control plane at a time. Make it with New, then call Run. Its methods may be called from any
// goroutine.
type Client struct {
	config    Config
	log       *slog.Logger
	known     *store
	addresses addresses

	updates chan Update
	answers chan answer   // From Ack and Nack to the session.
	events  chan event    // From the stream to the session.
	done    chan struct{} // Closed when Run returns.

	// wait pauses between two rounds of attempts, for a random time below the ceiling. Tests replace it.
	wait func(ctx context.Context, ceiling time.Duration)

	mu     sync.Mutex // Guards status alone.
	status Status
}

// Status is what the client does at one moment, for the status page and metrics.
type Status struct {
	// Connected says whether a stream is open, and Address to which control plane.
	Connected bool
	Address   string
	// Since is when Connected last changed.
	Since time.Time
	// LastError is why the last stream ended or could not be opened; it outlives the next success.
	LastError string
	// Streams counts the streams opened.
	Streams uint64
	// Types holds one entry per subscribed type, in the order of Config.Types.
	Types []TypeStatus
}

// TypeStatus is the status of one resource type.
type TypeStatus struct {
	Type      string
	Resources int    // Resources that the node acknowledged and still has.
	Responses uint64 // Responses received.
	Acked     uint64 // Responses acknowledged to the control plane.
	Nacked    uint64 // Responses refused.
	// InProgress says that the agent holds an update that it has not answered.
	InProgress bool
}

// New checks the configuration and loads the state file. A state file that is missing or damaged is logged and does
// not fail: the node then waits for the first control plane.
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
		events:  make(chan event),
		done:    make(chan struct{}),
		wait:    wait,
		status:  Status{Since: time.Now()},
	}
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
		conn, err := dial(config, address) // Connects to nothing yet; it refuses what could never connect.
		if err != nil {
			return fmt.Errorf("upstream: control plane %q: %w", address, err)
		}
		_ = conn.Close()
	}
	return nil
}

// Loaded returns the resources that the node acknowledged, by type URL and name. Before Run that is the content of the
// state file, from which a node forwards until a control plane answers. The control plane is told of these versions and
// does not send them again: whoever calls Run has to use what Loaded returned first. The maps are the caller's; the
// resources are shared and immutable.
func (c *Client) Loaded() map[string]map[string]Resource { return c.known.snapshot() }

// Updates returns the channel on which the node's reconciler takes updates. Every update has to be answered, by Ack or by
// Nack: the next one of its type comes only then. The channel is never closed.
func (c *Client) Updates() <-chan Update { return c.updates }

// Ack says that the node forwards as the update says. The versions count as known, the state is written, and the
// control plane is told, unless the stream that brought the update is gone.
func (c *Client) Ack(u Update) { c.answer(answer{update: u}) }

// Nack says that the node could not take the update, and why. It may have taken a part of it: at the next reconnect
// the control plane is asked for all of the update's resources again.
func (c *Client) Nack(u Update, err error) {
	if err == nil {
		err = errors.New("refused without a reason")
	}
	c.answer(answer{update: u, err: err})
}

func (c *Client) answer(a answer) {
	select {
	case c.answers <- a:
	case <-c.done: // Nobody is left to tell; the update is sent again after the next start.
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

// Run follows the control planes until ctx ends, and then writes the state a last time. It returns an error only when
// that fails. It may be called once.
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
