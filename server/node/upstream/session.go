package upstream

import (
	"context"
	"time"

	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// subscription is one resource type, as the owner sees it.
type subscription struct {
	typeURL    string
	status     *TypeStatus // In Client.status, written under Client.mu.
	subscribed bool        // On the current stream.
	pending    *Update     // Received on the current stream, not yet with the agent.
	working    *ticket     // Of the update that is with the agent.
}

// owner holds the state of the protocol. Only the goroutine of run touches it. It never blocks outside its select, so
// neither a slow agent nor a slow server can hold up the other.
type owner struct {
	client        *Client
	subscriptions []*subscription // In the order of Config.Types.
	stream        *stream         // Nil while there is none.
	requests      []*discoverypb.DeltaDiscoveryRequest
	ready         []*subscription // Those whose pending update can go to the agent, the longest waiting first.
}

func newOwner(c *Client) *owner {
	o := &owner{client: c}
	for i, t := range c.config.Types {
		o.subscriptions = append(o.subscriptions, &subscription{typeURL: t, status: &c.status.Types[i]})
	}
	return o
}

func (o *owner) run(ctx context.Context) {
	for {
		var (
			updates  chan<- Update
			update   Update
			requests chan<- *discoverypb.DeltaDiscoveryRequest
			request  *discoverypb.DeltaDiscoveryRequest
		)
		if len(o.ready) > 0 {
			updates, update = o.client.updates, *o.ready[0].pending
		}
		if len(o.requests) > 0 {
			requests, request = o.stream.requests, o.requests[0]
		}
		select {
		case <-ctx.Done():
			return
		case e := <-o.client.events:
			o.handle(e)
		case a := <-o.client.answers:
			o.answered(a)
		case updates <- update:
			o.handed()
		case requests <- request:
			o.requests = o.requests[1:]
		}
	}
}

func (o *owner) handle(e event) {
	switch {
	case e.err != nil:
		o.closed(e)
	case e.response != nil:
		o.received(e)
	default:
		o.opened(e)
	}
}

func (o *owner) opened(e event) {
	o.stream = e.stream
	for _, s := range o.subscriptions {
		o.subscribe(s)
	}
	o.note(func(status *Status) {
		status.Connected, status.Address, status.Since = true, e.stream.address, time.Now()
		status.Streams++
	})
}

// closed forgets what the node has not begun to apply: the next stream brings it again.
func (o *owner) closed(e event) {
	o.note(func(status *Status) {
		if status.Connected {
			status.Connected, status.Address, status.Since = false, "", time.Now()
		}
		status.LastError = e.err.Error()
	})
	o.stream, o.requests, o.ready = nil, nil, nil
	for _, s := range o.subscriptions {
		s.subscribed, s.pending = false, nil
	}
}

// subscribe asks for all resources of a type but those that the node has, as soon as it is certain what it has.
func (o *owner) subscribe(s *subscription) {
	if o.stream == nil || s.subscribed || s.working != nil {
		return
	}
	s.subscribed = true
	o.requests = append(o.requests, &discoverypb.DeltaDiscoveryRequest{
		// Every first request of a type names the node: which type comes first is not fixed.
		Node:                    &corepb.Node{Id: o.client.config.Node, UserAgentName: "fairlead-agent"},
		TypeUrl:                 s.typeURL,
		ResourceNamesSubscribe:  []string{"*"},
		InitialResourceVersions: o.client.known.versions(s.typeURL),
	})
}

func (o *owner) received(e event) {
	s := o.find(e.response.GetTypeUrl())
	if s == nil || !s.subscribed {
		o.client.log.Warn("control plane sent a type that was not asked for",
			"address", e.stream.address, "type", e.response.GetTypeUrl())
		return
	}
	update := newUpdate(e.stream, e.response)
	if s.pending != nil {
		update = s.pending.then(update)
	} else if s.working == nil {
		o.ready = append(o.ready, s)
	}
	s.pending = &update
	o.note(func(*Status) { s.status.Responses++ })
}

// handed moves the update that the agent just took from waiting to working.
func (o *owner) handed() {
	s := o.ready[0]
	o.ready = o.ready[1:]
	s.working, s.pending = s.pending.ticket, nil
	o.note(func(*Status) { s.status.InProgress = true })
}

func (o *owner) answered(a answer) {
	s := o.find(a.update.Type)
	if s == nil || a.update.ticket == nil || s.working != a.update.ticket {
		o.client.log.Error("an update was answered twice, or never handed out", "type", a.update.Type)
		return
	}
	if a.err == nil {
		o.client.known.apply(a.update)
	} else {
		o.client.known.doubt(a.update)
		o.client.log.Warn("update refused", "type", a.update.Type, "err", a.err)
	}
	s.working = nil
	o.note(func(*Status) { s.status.InProgress = false })
	if o.stream == a.update.ticket.stream {
		o.reply(s, a)
	}
	o.subscribe(s)
	if s.pending != nil {
		o.ready = append(o.ready, s)
	}
}

// reply answers each response of the update, in the order in which they came.
func (o *owner) reply(s *subscription, a answer) {
	for _, r := range a.update.ticket.replies {
		request := &discoverypb.DeltaDiscoveryRequest{TypeUrl: s.typeURL, ResponseNonce: r.nonce}
		err := a.err
		if err == nil {
			err = r.err
		}
		if err != nil {
			request.ErrorDetail = status.New(codes.InvalidArgument, err.Error()).Proto()
		}
		o.requests = append(o.requests, request)
		o.note(func(*Status) {
			if err == nil {
				s.status.Acked++
			} else {
				s.status.Nacked++
			}
		})
	}
}

func (o *owner) find(typeURL string) *subscription {
	for _, s := range o.subscriptions {
		if s.typeURL == typeURL {
			return s
		}
	}
	return nil
}

func (o *owner) note(change func(*Status)) {
	o.client.mu.Lock()
	defer o.client.mu.Unlock()
	change(&o.client.status)
}
