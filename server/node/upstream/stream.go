package upstream

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/keepalive"
)

// Bounds of a connection.
const (
	connectTimeout   = 5 * time.Second
	keepaliveTime    = 30 * time.Second // The server has to allow pings this often.
	keepaliveTimeout = 10 * time.Second
	// maxMessage is the largest response that the client accepts, in bytes. gRPC's default of 4 MiB is less than one response
	// with the clusters of 10,000 Services.
	maxMessage = 64 << 20
)

// stream is one DeltaAggregatedResources stream. An update of another stream than the current one is stale.
type stream struct {
	address  string
	requests chan *discoverypb.DeltaDiscoveryRequest // From the session.
}

// event is sent by the stream to the session: opened (neither field set), a response, or closed with its reason.
type event struct {
	stream   *stream
	response *discoverypb.DeltaDiscoveryResponse
	err      error
}

// connect keeps one stream open until ctx ends. It tries all addresses in a row, unless they change meanwhile, before it
// pauses.
func (c *Client) connect(ctx context.Context) {
	ceiling, last := baseBackoff, ""
	for {
		addresses, changed := c.addresses.get()
		for _, address := range order(addresses, last) {
			lived, err := c.follow(ctx, address)
			if ctx.Err() != nil {
				return
			}
			c.log.Warn("no stream to the control plane", "address", address, "err", err)
			last = address
			if lived {
				ceiling = baseBackoff
			}
			if lived || closed(changed) {
				break
			}
		}
		fresh := c.pause(ctx, ceiling, len(addresses) == 0, changed)
		switch {
		case ctx.Err() != nil:
			return
		case fresh:
			ceiling = baseBackoff
		default:
			ceiling = min(2*ceiling, maxBackoff)
		}
	}
}

// order returns the addresses in random order, with the one that failed last at the end.
func order(addresses []string, last string) []string {
	shuffled := slices.Clone(addresses)
	rand.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
	if i := slices.Index(shuffled, last); i >= 0 {
		shuffled = append(slices.Delete(shuffled, i, i+1), last)
	}
	return shuffled
}

// wait pauses for a random time between 0 and the ceiling (full jitter): all clients of a control plane that stopped begin to
// wait at the same moment, and must not reconnect at the same moment.
func wait(ctx context.Context, ceiling time.Duration) {
	timer := time.NewTimer(rand.N(ceiling))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// follow opens a stream to one control plane and receives from it until it ends. lived reports that the stream was of use: it
// brought a response, or it was open longer than any pause (a server may send nothing for hours to a client that is up to date).
func (c *Client) follow(parent context.Context, address string) (lived bool, err error) {
	ctx, cancel := context.WithCancel(parent)
	s := &stream{address: address, requests: make(chan *discoverypb.DeltaDiscoveryRequest)}
	var sending sync.WaitGroup
	defer func() {
		cancel()
		sending.Wait()
		c.tell(parent, event{stream: s, err: err})
	}()

	conn, err := dial(c.config, address)
	if err != nil {
		return false, err
	}
	defer func() { _ = conn.Close() }()
	ads, err := discoverypb.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		return false, err
	}
	c.log.Info("connected to a control plane", "address", address)
	opened := time.Now()
	c.tell(ctx, event{stream: s})
	sending.Go(func() { s.send(ctx, ads) })
	for {
		response, err := ads.Recv()
		if err != nil {
			return lived || time.Since(opened) > maxBackoff, err
		}
		lived = true
		c.tell(ctx, event{stream: s, response: response})
	}
}

// send sends the session's requests. It has a goroutine of its own, since a server that is busy sending may not read:
// if the session waited for it, each would wait for the other.
func (s *stream) send(ctx context.Context, ads discoverypb.AggregatedDiscoveryService_DeltaAggregatedResourcesClient) {
	for {
		select {
		case <-ctx.Done():
			return
		case request := <-s.requests:
			if ads.Send(request) != nil {
				return // Recv returns the reason.
			}
		}
	}
}

func (c *Client) tell(ctx context.Context, e event) {
	select {
	case c.events <- e:
	case <-ctx.Done():
	}
}

func dial(config Config, address string) (*grpc.ClientConn, error) {
	options := []grpc.DialOption{
		// A node connects to its control plane directly, and reads no settings from DNS or the environment.
		grpc.WithNoProxy(),
		grpc.WithDisableServiceConfig(),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.DefaultConfig, MinConnectTimeout: connectTimeout}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: keepaliveTime, Timeout: keepaliveTimeout}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
	}
	return grpc.NewClient(address, append(options, config.DialOptions...)...)
}
