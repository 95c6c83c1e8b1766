package cache

import (
	"cmp"

	gcpresource "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
)

// sendAdditions sends what the client lacks of what exists. alone is true when nothing else waits to be sent on
// the stream: then the response carries the removals of the type too, which saves a round trip.
func (t *subscription) sendAdditions(alone bool) {
	r := &response{}
	if t.all {
		r.resources = t.takeAll()
	} else {
		r.resources = t.takeChanged()
	}
	if alone && t.delta() {
		r.removed = t.takeRemoved()
	}
	t.send(r)
}

// sendRemovals sends the names of removed resources.
func (t *subscription) sendRemovals() { t.send(&response{removed: t.takeRemoved()}) }

// send sends a response, unless it is empty and none is due.
func (t *subscription) send(r *response) {
	if len(r.resources) == 0 && len(r.removed) == 0 && !t.answer {
		return
	}
	if !t.delta() && fullState(t.typeURL) {
		r.resources, r.removed = t.everything(), nil
		clear(t.removed)
	}
	r.since, r.upTo = t.since, t.stream.cache.seq
	if r.since == 0 {
		r.since = r.upTo // An answer that is due although the client lacks nothing.
	}
	if !t.push(r) {
		r.each(t.ask)
		return
	}
	t.answer, t.isOpen = false, false
	t.inFlight = append(t.inFlight, r)
	t.sent = r.upTo
	if t.delta() && t.typeURL == gcpresource.ClusterType {
		t.stream.repeatAssignments(r)
	}
}

// repeatAssignments has the assignments sent, whatever the client has, that the clusters in a response refer to.
//
// A cluster that Envoy gets stays warming until an assignment arrives after it, and Envoy does not ask for one that it
// watches already, for the cluster before or for another one. Where both are new to the client, coverClusters sees to that;
// this is for who had rejected a cluster and accepted its assignment, or asks for a cluster by its name. Who subscribes to
// all assignments is no Envoy, which subscribes by name, and hands them on in its own order.
func (s *Stream) repeatAssignments(r *response) {
	eds := s.find(gcpresource.EndpointType)
	for _, i := range r.resources {
		switch {
		case i.assignment == "":
		case eds != nil:
			eds.repeat(i.assignment)
		default:
			if s.owed == nil {
				s.owed = map[string]struct{}{}
			}
			s.owed[i.assignment] = struct{}{}
		}
	}
}

// repeat has the resource of a name sent, though the client may have it, if the client subscribes to it by name.
func (t *subscription) repeat(name string) {
	if t.wildcard || !t.follows(name) {
		return
	}
	e := t.lookUp(name)
	if had, waits := t.changed[name]; e != nil && (!waits || had == e.version()) {
		t.lack(name, unknown, true)
		t.changed[name] = unknown
	}
}

// takeChanged returns the resources that changed, which the client will then have.
func (t *subscription) takeChanged() []item {
	var found []item
	for name, had := range t.changed {
		e := t.lookUp(name)
		switch {
		case e == nil || !t.follows(name) || e.version() == had:
		default:
			found = append(found, item{e, had != unknown})
		}
	}
	t.changed = emptied(t.changed)
	return found
}

// takeRemoved returns the names of removed resources that the client has or asks for.
func (t *subscription) takeRemoved() []string {
	var gone []string
	for name, had := range t.removed {
		if had != "" && t.follows(name) {
			gone = append(gone, name)
		}
	}
	t.removed = emptied(t.removed)
	return gone
}

// takeAll returns all resources that the client lacks by its own account, and records those that it should have no more.
func (t *subscription) takeAll() []item {
	var found []item
	t.each(func(e *entry) {
		name := e.plain.GetName()
		if t.has[name] != e.version() || t.changed[name] == unknown || t.removed[name] == unknown {
			found = append(found, item{e, false})
		}
		delete(t.removed, name)
	})
	has, asked := t.has, t.changed
	t.all, t.has, t.changed = false, nil, nil
	for name, version := range has {
		t.lackIfGone(name, cmp.Or(version, unknown))
	}
	for name, had := range asked {
		t.lackIfGone(name, had)
	}
	if has != nil { // Otherwise the client got an answer about its names when it asked for them.
		for name := range t.names {
			t.lackIfGone(name, unknown)
		}
	}
	return found
}

// lackIfGone records the removal of a name of which the client has a version, if no resource has the name now.
func (t *subscription) lackIfGone(name, had string) {
	if t.follows(name) && t.lookUp(name) == nil {
		t.lack(name, had, false)
	}
}

// everything returns all resources that the client subscribes to.
func (t *subscription) everything() []item {
	var found []item
	t.each(func(e *entry) { found = append(found, item{e, false}) })
	return found
}

// each calls do with every resource that exists and that the client subscribes to.
func (t *subscription) each(do func(*entry)) {
	if t.wildcard {
		t.stream.cache.visible(t.stream.view, t.typeURL, do)
		return
	}
	for name := range t.names {
		if e := t.lookUp(name); e != nil {
			do(e)
		}
	}
}

// emptied returns m without entries. A large map would keep its memory, so it is dropped.
func emptied(m map[string]string) map[string]string {
	if len(m) > 64 {
		return nil
	}
	clear(m)
	return m
}
