package cache

import (
	"slices"

	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	gcptypes "github.com/envoyproxy/go-control-plane/pkg/cache/types"
	gcpcache "github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/fairlead/fairlead/translate/model"
)

// maxTypes is how many types one stream may subscribe to. go-control-plane's channels hold one response (SotW) or two
// (delta) for each of so many types; subscription.push relies on it.
const maxTypes = int(gcptypes.UnknownType)

// maxUnacknowledged is how many responses of a type a client with a limit of names may leave without an ACK or NACK. The
// cache keeps what was in each of them. Clients answer one before they ask for more.
const maxUnacknowledged = 64

// Stream is what one client was sent, over one gRPC stream, and what it has yet to be sent. Its methods are called by
// go-control-plane's server on the goroutine of the stream. Its state is guarded by the cache's lock.
type Stream struct {
	cache *Cache
	cfg   StreamConfig

	node, zone string          // Of the client, from its first request. node is "" until then.
	client     *corepb.Node    // What the client last said of itself. Immutable.
	view       model.View      // Meaningful from then on.
	subs       []*subscription // In sendOrder.
	removals   []*subscription // The same, in removeOrder.
	touched    bool            // In Cache.touched.

	// owed has the assignments of clusters that were sent while the client did not subscribe to any assignment.
	owed   map[string]struct{}
	closed bool
}

var _ gcpcache.ConfigWatcher = (*Stream)(nil)

// StreamConfig is what may differ between streams. The zero value suits a client that is trusted.
type StreamConfig struct {
	// MaxNames is how many names of a type the client may subscribe to one by one. If it is set, the client may also leave
	// no more than maxUnacknowledged responses of a type unanswered. Else a watch fails with ResourceExhausted. 0 means no limit.
	MaxNames int
	// Nacked is called, as Observer.Nacked is, when the client has rejected a response. May be nil.
	Nacked func(typeURL, detail string)
}

// OpenStream returns the state of a new stream. Close must be called when the stream ends.
//
// go-control-plane's server passes its cache neither the stream that a watch belongs to nor the stream's end. So each
// stream has a server and a ConfigWatcher of its own, and nothing is kept for a client that has disconnected.
func (c *Cache) OpenStream(cfg StreamConfig) *Stream { return &Stream{cache: c, cfg: cfg} }

// Close removes the stream from the cache. Watches can no longer be created.
func (s *Stream) Close() {
	c := s.cache
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.closed {
		return
	}
	s.closed = true
	for _, t := range s.subs {
		t.cancel()
	}
	if s.node == "" {
		return
	}
	delete(c.viewers[s.view].streams, s)
	c.leaveView(s.view)
	delete(c.nodes[s.node], s)
	if len(c.nodes[s.node]) == 0 {
		delete(c.nodes, s.node)
	}
}

// CreateDeltaWatch takes a delta request: what it acknowledges and what it subscribes to. The response, or the next
// change, goes to responses.
func (s *Stream) CreateDeltaWatch(req *discoverypb.DeltaDiscoveryRequest, sub gcpcache.Subscription, responses chan gcpcache.DeltaResponse) (cancel func(), err error) {
	return s.watch(req, sub, func(t *subscription) verdict {
		t.deltaResponses = responses
		v := t.acknowledge(req.GetResponseNonce(), req.GetErrorDetail() != nil, req.GetErrorDetail().GetMessage())
		t.subscribeDelta(req, sub)
		return v
	})
}

// CreateWatch takes a SotW request, like CreateDeltaWatch.
func (s *Stream) CreateWatch(req *discoverypb.DiscoveryRequest, sub gcpcache.Subscription, responses chan gcpcache.Response) (cancel func(), err error) {
	return s.watch(req, sub, func(t *subscription) verdict {
		t.sotwResponses = responses
		v := t.acknowledge(req.GetResponseNonce(), req.GetErrorDetail() != nil, req.GetErrorDetail().GetMessage())
		t.subscribeSotw(sub)
		t.resend()
		return v
	})
}

// watch opens the watch of a type, after take has applied the request, and sends what can be sent. What takes time in
// proportion to the names that the client subscribes to, and can be done without the lock, is.
func (s *Stream) watch(req request, sub gcpcache.Subscription, take func(*subscription) verdict) (cancel func(), err error) {
	c := s.cache
	derived, err := s.takeIn(req.GetTypeUrl(), sub.SubscribedResources())
	if err != nil {
		return nil, err
	}
	c.lockRendered(func(w wants) {
		if s.node == "" && !s.closed {
			c.wantView(w, c.viewOf(nodeOf(req.GetNode()), zoneOf(req.GetNode())))
		}
	})
	if err := s.identify(req.GetNode()); err != nil {
		c.unlockAndReport()
		return nil, err
	}
	s.client = req.GetNode() // go-control-plane's server repeats it where a request has none.
	t, err := s.subscription(req.GetTypeUrl())
	if err != nil {
		c.unlockAndReport()
		return nil, err
	}
	t.derived = derived
	v := take(t)
	cancel = t.open()
	s.flush()
	if s.cfg.MaxNames > 0 && len(t.inFlight) > maxUnacknowledged {
		c.unlockAndReport()
		return nil, status.Errorf(codes.ResourceExhausted, "%d responses of %s are not acknowledged: answer each with its nonce", len(t.inFlight), t.typeURL)
	}
	v.applied = t.applied(c.seq)
	c.unlockAndReport()

	// The observer may call the cache, so it is called without the lock.
	if v.nacked && s.cfg.Nacked != nil {
		s.cfg.Nacked(t.typeURL, v.detail)
	}
	if c.observer != nil {
		v.report(c.observer, s.node, t.typeURL)
	}
	return cancel, nil
}

// takeIn returns what follows from the names that the client subscribes to, if they are not too many. It runs on the
// goroutine of the stream, which alone alters the stream's list of subscriptions and what is derived from their names.
func (s *Stream) takeIn(typeURL string, names map[string]struct{}) (derived map[string]*entry, err error) {
	if s.cfg.MaxNames > 0 && len(names) > s.cfg.MaxNames {
		return nil, status.Errorf(codes.ResourceExhausted, "a client of this kind may subscribe to %d resources of a type: %s has %d", s.cfg.MaxNames, typeURL, len(names))
	}
	var before map[string]*entry
	if t := s.find(typeURL); t != nil {
		before = t.derived
	}
	return s.cache.deriveAll(typeURL, names, before), nil
}

// request is what the two protocols' requests have in common.
type request interface {
	GetNode() *corepb.Node
	GetTypeUrl() string
}

// identify enters the stream among those of its node with the first request, and refuses later requests of another node.
func (s *Stream) identify(node *corepb.Node) error {
	id := node.GetId()
	switch {
	case s.closed:
		return status.Error(codes.Unavailable, "the stream has ended")
	case id == "":
		return status.Error(codes.InvalidArgument, "node.id is empty: set it in the client's bootstrap to the name of its node")
	case s.node == id:
		return nil
	case s.node != "":
		return status.Errorf(codes.InvalidArgument, "node.id changed from %q to %q: open a stream for each node", s.node, id)
	}
	c := s.cache
	s.node, s.zone = id, zoneOf(node)
	if c.nodes[id] == nil {
		c.nodes[id] = map[*Stream]struct{}{}
	}
	c.nodes[id][s] = struct{}{}
	s.view = c.viewOf(nodeOf(node), s.zone)
	c.useView(s.view).streams[s] = struct{}{}
	return nil
}

// subscription returns the stream's subscription to a type, a new one if there is none.
func (s *Stream) subscription(typeURL string) (*subscription, error) {
	if t := s.find(typeURL); t != nil {
		return t, nil
	}
	if len(s.subs) == maxTypes {
		return nil, status.Errorf(codes.ResourceExhausted, "more than %d types on one stream: %s is one too many", maxTypes, typeURL)
	}
	t := &subscription{
		stream:       s,
		typeURL:      typeURL,
		deltaRequest: &discoverypb.DeltaDiscoveryRequest{TypeUrl: typeURL},
		sotwRequest:  &discoverypb.DiscoveryRequest{TypeUrl: typeURL},
	}
	s.subs = insert(s.subs, t, sendOrder)
	s.removals = insert(s.removals, t, removeOrder)
	return t, nil
}

// insert puts t where its type belongs in an order.
func insert(subs []*subscription, t *subscription, order []string) []*subscription {
	i := slices.IndexFunc(subs, func(o *subscription) bool { return rank(order, o.typeURL) > rank(order, t.typeURL) })
	if i < 0 {
		i = len(subs)
	}
	return slices.Insert(subs, i, t)
}

// find returns the stream's subscription to a type, nil if there is none.
func (s *Stream) find(typeURL string) *subscription {
	for _, t := range s.subs {
		if t.typeURL == typeURL {
			return t
		}
	}
	return nil
}

// note records changes of what the stream's view sees, as far as the client subscribes to it, for the next flush.
func (s *Stream) note(changes []delta) {
	for _, ch := range changes {
		t := s.find(ch.typeURL)
		if t == nil || !t.follows(ch.name) {
			continue
		}
		exists := ch.exists
		if ch.contested || !exists {
			exists = t.lookUp(ch.name) != nil
		}
		if t.note(ch.name, ch.had, exists) {
			s.touch()
		}
	}
}

// touch has Publish flush the stream.
func (s *Stream) touch() {
	if !s.touched {
		s.touched = true
		s.cache.touched = append(s.cache.touched, s)
	}
}

// flush sends what can be sent, and records which types then lack nothing.
//
// Additions and changes come first, in sendOrder; then removals, in removeOrder, so that nothing is taken away while
// something still refers to it. A type whose watch is not open, because the client has yet to acknowledge the response
// before, delays the types after it: on the wire, an assignment never overtakes the cluster that needs it. The
// client's acknowledgement flushes again.
func (s *Stream) flush() {
	if s.cache.seq == 0 {
		return // An incomplete state is worse than none: clients would drop what they still have.
	}
	s.send()
	for _, t := range s.subs {
		if !t.hasAdditions() && !t.hasRemovals() {
			t.since = 0
		}
	}
}

func (s *Stream) send() {
	for _, t := range s.subs {
		if !t.hasAdditions() {
			continue
		}
		if !t.isOpen {
			return
		}
		t.sendAdditions(s.idleBut(t))
	}
	for _, t := range s.removals {
		if !t.hasRemovals() {
			continue
		}
		if !t.isOpen {
			return
		}
		t.sendRemovals()
	}
}

// idleBut reports whether nothing but t waits to be sent.
func (s *Stream) idleBut(t *subscription) bool {
	return !slices.ContainsFunc(s.subs, func(o *subscription) bool { return o != t && (o.hasAdditions() || o.hasRemovals()) })
}
