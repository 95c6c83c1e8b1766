package upstream

import (
	"context"
	"slices"
	"time"

	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// subscription is the session's state of one resource type.
type subscription struct {
	typeURL    string
	status     *TypeStatus // In Client.status, written under Client.mu.
	subscribed bool        // On the current stream.
	pending    *Update     // Received on the current stream, not yet with the agent.
	working    *ticket     // Of the update that the agent has.
}

// session holds the state of the protocol. Only the goroutine of run accesses it. It never blocks outside its select, so
// neither a slow agent nor a slow server can block the other.
type session struct {
	client        *Client
	subscriptions []*subscription // In the order of Config.Types.
	stream        *stream         // Nil while there is none.
	requests      []*discoverypb.DeltaDiscoveryRequest
	ready         []*subscription // Those whose pending update can go to the agent, in the order in which they became ready.
}

func newSession(c *Client) *session {
	o := &session{client: c}
	for i, t := range c.config.Types {
		o.subscriptions = append(o.subscriptions, &subscription{typeURL: t, status: &c.status.Types[i]})
	}
	return o
}

func (s *session) run(ctx context.Context) {
	for {
		var (
			updates  chan<- Update
			update   Update
			requests chan<- *discoverypb.DeltaDiscoveryRequest
			request  *discoverypb.DeltaDiscoveryRequest
		)
		if len(s.ready) > 0 {
			updates, update = s.client.updates, *s.ready[0].pending
		}
		if len(s.requests) > 0 {
			requests, request = s.stream.requests, s.requests[0]
		}
		select {
		case <-ctx.Done():
			return
		case e := <-s.client.events:
			s.handle(e)
		case a := <-s.client.answers:
			s.answered(a)
		case <-s.client.news:
			s.reportNews()
		case updates <- update:
			s.handed()
		case requests <- request:
			s.requests = s.requests[1:]
		}
	}
}

func (s *session) handle(e event) {
	switch {
	case e.err != nil:
		s.closed(e)
	case e.response != nil:
		s.received(e)
	default:
		s.opened(e)
	}
}

func (s *session) opened(e event) {
	s.stream = e.stream
	for _, sub := range s.subscriptions {
		s.subscribe(sub)
	}
	s.note(func(status *Status) {
		status.Connected, status.Address, status.Since = true, e.stream.address, time.Now()
		status.Streams++
	})
}

// closed drops the updates that the node has not begun to apply: the next stream brings them again.
func (s *session) closed(e event) {
	s.note(func(status *Status) {
		if status.Connected {
			status.Connected, status.Address, status.Since = false, "", time.Now()
		}
		status.LastError = e.err.Error()
	})
	s.stream, s.requests, s.ready = nil, nil, nil
	for _, sub := range s.subscriptions {
		sub.subscribed, sub.pending = false, nil
	}
}

// subscribe subscribes to a type with the versions that the node has, as soon as these are certain.
func (s *session) subscribe(sub *subscription) {
	if s.stream == nil || sub.subscribed || sub.working != nil {
		return
	}
	sub.subscribed = true
	s.requests = append(s.requests, &discoverypb.DeltaDiscoveryRequest{
		// The first request of every type names the node, since any type may be the first on a stream.
		Node:                    s.self(),
		TypeUrl:                 sub.typeURL,
		ResourceNamesSubscribe:  []string{"*"},
		InitialResourceVersions: s.client.known.versions(sub.typeURL),
	})
}

// self returns what the agent says of itself.
func (s *session) self() *corepb.Node {
	return &corepb.Node{
		Id: s.client.config.Node, UserAgentName: "fairlead-agent",
		UserAgentVersionType: &corepb.Node_UserAgentVersion{UserAgentVersion: s.client.config.Version},
		Metadata:             s.client.report.Load().Metadata(),
	}
}

// reportNews sends the report, unless the first request on the stream will bring it. A request without nonce and names neither
// answers a response nor changes a subscription, whatever its type.
func (s *session) reportNews() {
	i := slices.IndexFunc(s.subscriptions, func(sub *subscription) bool { return sub.subscribed })
	if i >= 0 {
		s.requests = append(s.requests, &discoverypb.DeltaDiscoveryRequest{Node: s.self(), TypeUrl: s.subscriptions[i].typeURL})
	}
}

func (s *session) received(e event) {
	sub := s.find(e.response.GetTypeUrl())
	if sub == nil || !sub.subscribed {
		s.client.log.Warn("control plane sent a type to which the agent has not subscribed",
			"address", e.stream.address, "type", e.response.GetTypeUrl())
		return
	}
	update := newUpdate(e.stream, e.response)
	if sub.pending != nil {
		update = sub.pending.then(update)
	} else if sub.working == nil {
		s.ready = append(s.ready, sub)
	}
	sub.pending = &update
	s.note(func(*Status) { sub.status.Responses++ })
}

// handed moves the update that the agent just received from pending to working.
func (s *session) handed() {
	sub := s.ready[0]
	s.ready = s.ready[1:]
	sub.working, sub.pending = sub.pending.ticket, nil
	s.note(func(*Status) { sub.status.InProgress = true })
}

func (s *session) answered(a answer) {
	sub := s.find(a.update.Type)
	if sub == nil || a.update.ticket == nil || sub.working != a.update.ticket {
		s.client.log.Error("the agent answered an update twice, or one that it never received", "type", a.update.Type)
		return
	}
	if a.err == nil {
		s.client.known.apply(a.update)
	} else {
		s.client.known.doubt(a.update)
		s.client.log.Warn("the node rejected an update", "type", a.update.Type, "err", a.err)
	}
	sub.working = nil
	s.note(func(*Status) { sub.status.InProgress = false })
	if s.stream == a.update.ticket.stream {
		s.reply(sub, a)
	}
	s.subscribe(sub)
	if sub.pending != nil {
		s.ready = append(s.ready, sub)
	}
}

// reply answers each response of the update, in the order in which they arrived.
func (s *session) reply(sub *subscription, a answer) {
	for _, r := range a.update.ticket.replies {
		request := &discoverypb.DeltaDiscoveryRequest{TypeUrl: sub.typeURL, ResponseNonce: r.nonce}
		err := a.err
		if err == nil {
			err = r.err
		}
		if err != nil {
			request.ErrorDetail = status.New(codes.InvalidArgument, err.Error()).Proto()
		}
		s.requests = append(s.requests, request)
		s.note(func(*Status) {
			if err == nil {
				sub.status.Acked++
			} else {
				sub.status.Nacked++
			}
		})
	}
}

func (s *session) find(typeURL string) *subscription {
	for _, sub := range s.subscriptions {
		if sub.typeURL == typeURL {
			return sub
		}
	}
	return nil
}

func (s *session) note(change func(*Status)) {
	s.client.mu.Lock()
	defer s.client.mu.Unlock()
	change(&s.client.status)
}
