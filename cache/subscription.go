package cache

import (
	"maps"

	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	gcpcache "github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	gcpresource "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
)

const (
	wildcard = "*" // The name that subscribes to everything.

	// unknown stands for a version that the cache does not know: the client has to be sent the present one, or the
	// removal.
	unknown = "?"
)

// subscription is one type on one stream.
//
// It holds what the client has by exception: the client has what its view sees at present, but for the names in
// changed and removed, which say what it has instead. So a client that is up to date costs the same however much it
// subscribes to, and a change costs as much as it changes.
//
// names is go-control-plane's own map, not a copy. With delta, the server alters it after it has cancelled the watch
// and before it creates the next, both of which take the cache's lock. So it is read only in between, when attached is
// set. Meanwhile every name counts as subscribed to; what is not will be found when it is to be sent.
type subscription struct {
	stream  *Stream
	typeURL string

	wildcard   bool
	names      map[string]struct{}
	subscribed int               // len(names), also when that must not be read.
	derived    map[string]*entry // What follows from the names alone; immutable, and replaced on the goroutine of the stream.

	// The watch. attached is set from its creation until it is cancelled, isOpen until it is answered or cancelled.
	attached, isOpen bool
	watches          uint64                             // How many were created.
	deltaRequest     *discoverypb.DeltaDiscoveryRequest // For responses; see deltaResponse.
	deltaResponses   chan gcpcache.DeltaResponse
	sotwRequest      *discoverypb.DiscoveryRequest
	sotwResponses    chan gcpcache.Response

	// What the client lacks.
	all     bool              // All of it is to be compared with has.
	has     map[string]string // What the client had before the stream, by name, until all is done; go-control-plane's, read like names.
	changed map[string]string // Names that exist, and which version the client has: "" for none, or unknown.
	removed map[string]string // Names that do not, likewise.
	answer  bool              // A response is due even if it is empty.
	since   uint64            // The first publish that the client lacks something of; 0 if nothing.

	// What the client was sent and has not acknowledged, or not accepted.
	inFlight []*response
	rejected map[string]uint64 // By name, the first publish that the client may lack.
	nack     string            // The last reason.
	sent     uint64            // The publish reached by the last response.
}

func (t *subscription) delta() bool { return t.deltaResponses != nil }

// follows reports whether the client subscribes to a name.
func (t *subscription) follows(name string) bool {
	if t.wildcard || !t.attached {
		return true
	}
	_, ok := t.names[name]
	return ok
}

// lookUp returns what the client sees under a name, nil if nothing.
func (t *subscription) lookUp(name string) *entry {
	if e := t.stream.cache.lookUp(t.stream.view, resourceName{t.typeURL, name}); e != nil || t.wildcard {
		return e
	}
	return t.derived[name]
}

// open starts a watch, and returns what ends it.
func (t *subscription) open() (cancel func()) {
	t.attached, t.isOpen = true, true
	t.watches++
	watch := t.watches
	return func() {
		mu := &t.stream.cache.mu
		mu.Lock()
		defer mu.Unlock()
		if t.watches == watch {
			t.cancel()
		}
	}
}

// cancel ends the watch. From then on names and has are not read.
func (t *subscription) cancel() { t.attached, t.isOpen = false, false }

// subscribeDelta applies the subscriptions of a delta request.
func (t *subscription) subscribeDelta(req *discoverypb.DeltaDiscoveryRequest, sub gcpcache.Subscription) {
	first := t.watches == 0
	t.attached = true // The request is being handled: the server is done with the names.
	t.wildcard, t.names = sub.IsWildcard(), sub.SubscribedResources()
	t.subscribed = len(t.names)
	if first {
		t.has = sub.ReturnedResources()
		t.lacksAll(1)
		// Envoy's initialisation waits for a first response, so that there has to be one even without resources. A client
		// that has resources is past that.
		t.answer = t.wildcard && len(t.has) == 0
		if t.typeURL == gcpresource.EndpointType {
			for name := range t.stream.owed {
				t.repeat(name)
			}
			t.stream.owed = nil
		}
		return
	}
	for _, name := range req.GetResourceNamesSubscribe() {
		switch {
		case name != wildcard:
			t.ask(name)
		case !t.all:
			t.answer = true
			t.lacksAll(t.stream.cache.seq)
		}
	}
	for _, name := range req.GetResourceNamesUnsubscribe() {
		switch {
		case name == wildcard:
			maps.DeleteFunc(t.rejected, func(name string, _ uint64) bool { return !t.follows(name) })
		case t.wildcard:
			t.ask(name) // The protocol has the server answer for a name that only the wildcard still covers.
		default:
			t.forget(name)
		}
	}
}

// subscribeSotw applies the subscriptions of a SotW request: sub has all names each time, in a new map.
func (t *subscription) subscribeSotw(sub gcpcache.Subscription) {
	first := t.watches == 0
	before, all := t.names, t.wildcard
	t.attached = true
	t.wildcard, t.names = sub.IsWildcard(), sub.SubscribedResources()
	t.subscribed = len(t.names)
	if first || t.wildcard && !all {
		// What version_info a client brings along does not matter: it does not cover names that are new in this
		// request. gRPC clients wait for a response to find that a name does not exist.
		t.answer = true
		if first {
			t.has = map[string]string{}
			t.lacksAll(1)
		} else {
			t.lacksAll(t.stream.cache.seq)
		}
		return
	}
	for name := range t.names {
		if _, ok := before[name]; !ok {
			t.ask(name)
			t.answer = true
		}
	}
	for name := range before {
		if _, ok := t.names[name]; !ok && !t.wildcard {
			t.forget(name)
		}
	}
}

// lacksAll has everything compared with what the client has.
func (t *subscription) lacksAll(since uint64) {
	t.all = true
	t.lacks(since)
}

// lacks records that the client does not have all of a publish.
func (t *subscription) lacks(since uint64) {
	if t.since == 0 {
		t.since = max(1, since)
	}
}

// ask records that a name has to be answered whatever the client has.
func (t *subscription) ask(name string) {
	if !t.follows(name) {
		return
	}
	t.forget(name)
	t.lack(name, unknown, t.lookUp(name) != nil)
}

// forget drops what is known of a name, because the client no longer subscribes to it or asks for it anew.
func (t *subscription) forget(name string) {
	delete(t.changed, name)
	delete(t.removed, name)
	delete(t.rejected, name)
}

// note records that what the client sees under a name has changed from version had, and whether there is something
// now. It reports whether that matters to the client.
func (t *subscription) note(name, had string, exists bool) bool {
	if !t.follows(name) {
		return false
	}
	if !t.all || t.has == nil { // Else the comparison with what the client had before the stream will find it.
		t.lack(name, had, exists)
	}
	return true
}

// lack records that the client has a version of a name that is not the present one, and whether there is a present
// one. What was known of the version before stays: the client was not sent anything in between.
func (t *subscription) lack(name, had string, exists bool) {
	if !exists && !t.tellsRemovals() {
		t.forget(name)
		return
	}
	to, from := &t.changed, t.removed
	if !exists {
		to, from = &t.removed, t.changed
	}
	if before, ok := from[name]; ok {
		had = before
		delete(from, name)
	}
	if _, ok := (*to)[name]; !ok {
		if *to == nil {
			*to = map[string]string{}
		}
		(*to)[name] = had
	}
	t.lacks(t.stream.cache.seq)
}

// tellsRemovals reports whether responses can remove a resource. SotW responses can only by leaving it out,
// which means something for Listeners and Clusters alone: they are complete, those of other types hold what changed.
func (t *subscription) tellsRemovals() bool { return t.delta() || fullState(t.typeURL) }

func (t *subscription) hasAdditions() bool { return t.all || t.answer || len(t.changed) > 0 }
func (t *subscription) hasRemovals() bool  { return len(t.removed) > 0 }

// push hands a response to the server. It never waits.
//
// The channel has room: a type has at most one response in it, which took its watch, plus with delta one more, when a
// publish came between the moment that the server emptied the channel and the moment that it cancelled the watch to
// create the next. A delta channel has room for two responses of maxTypes types, a SotW channel of ADS for one of each,
// and others serve one type. Should that ever change, the watch stays open and the names stay to be sent.
func (t *subscription) push(r *response) bool {
	if t.delta() {
		select {
		case t.deltaResponses <- &deltaResponse{response: r, request: t.deltaRequest, system: t.stream.cache.system}:
			return true
		default:
			return false
		}
	}
	select {
	case t.sotwResponses <- &sotwResponse{response: r, request: t.sotwRequest}:
		return true
	default:
		return false
	}
}
