package upstream

import (
	"context"
	"time"

	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// subscription is one resource type, as the session sees it.
type subscription struct {
	typeURL    string
	status     *TypeStatus // In Client.status, written under Client.mu.
	subscribed bool        // On the current stream.
	pending    *Update     // Received on the current stream, not yet with the agent.
	working    *ticket     // Of the update that is with the agent.
}

// session holds the state of the protocol. Only the goroutine of run touches it. It never blocks outside its select, so
// neither a slow agent nor a slow server can hold up the other.
type session struct {
	client        *Client
	subscriptions []*subscription // In the order of Config.Types.
	stream        *stream         // Nil while there is none.
	requests      []*discoverypb.DeltaDiscoveryRequest
	ready         []*subscription // Those whose pending update can go to the agent, the longest waiting first.
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

// closed forgets what the node has not begun to apply: the next stream brings it again.
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

// subscribe asks for all resources of a type but those that the node has, as soon as it is certain what it has.
func (s *session) subscribe(sub *subscription) {
	if s.stream == nil || sub.subscribed || sub.working != nil {
		return
	}
	sub.subscribed = true
	s.requests = append(s.requests, &discoverypb.DeltaDiscoveryRequest{
		// Every first request of a type names the node: which type comes first is not fixed.
		Node:                    &corepb.Node{Id: s.client.config.Node, UserAgentName: "fairlead-agent"},
		TypeUrl:                 sub.typeURL,
		ResourceNamesSubscribe:  []string{"*"},
		InitialResourceVersions: s.client.known.versions(sub.typeURL),
	})
}

func (s *session) received(e event) {
	sub := s.find(e.response.GetTypeUrl())
	if sub == nil || !sub.subscribed {
		s.client.log.Warn("control plane sent a type that was not asked for",
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

// handed moves the update that the agent just took from waiting to working.
func (s *session) handed() {
	sub := s.ready[0]
	s.ready = s.ready[1:]
	sub.working, sub.pending = sub.pending.ticket, nil
	s.note(func(*Status) { sub.status.InProgress = true })
}

func (s *session) answered(a answer) {
	sub := s.find(a.update.Type)
	if sub == nil || a.update.ticket == nil || sub.working != a.update.ticket {
		s.client.log.Error("an update was answered twice, or never handed out", "type", a.update.Type)
		return
	}
	if a.err == nil {
		s.client.known.apply(a.update)
	} else {
		s.client.known.doubt(a.update)
		s.client.log.Warn("update refused", "type", a.update.Type, "err", a.err)
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

// reply answers each response of the update, in the order in which they came.
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
