package cache

import (
	"strings"

	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"

	"github.com/fairlead/fairlead/translate/grpc"
	"github.com/fairlead/fairlead/translate/model"
)

// viewer is the streams with one view.
type viewer struct {
	streams map[*Stream]struct{}
	uses    int // Streams, and fetches under way.
}

// viewOf returns the view of the clients on a node, which say that they are in a zone.
func (c *Cache) viewOf(node, zone string) model.View {
	if v, ok := c.views[node]; ok {
		return v
	}
	return model.View{Node: node, Zone: zone}
}

// useView keeps the variants that a view needs, until leaveView. It takes time in proportion to
// the contributions for the first user of a view, and none for others.
func (c *Cache) useView(view model.View) *viewer {
	w := c.viewers[view]
	if w == nil {
		w = &viewer{streams: map[*Stream]struct{}{}}
		c.viewers[view] = w
		for _, u := range c.slots {
			if v := u.acquire(view, nil, nil); v != nil {
				c.holdVariant(u, v)
				c.noteFailure(u)
			}
		}
	}
	w.uses++
	return w
}

// leaveView ends a use of a view.
func (c *Cache) leaveView(view model.View) {
	w := c.viewers[view]
	w.uses--
	if w.uses > 0 {
		return
	}
	delete(c.viewers, view)
	for _, u := range c.slots {
		u.release(view)
	}
}

// setView changes what a node's clients see, and records the difference on their streams.
func (c *Cache) setView(node string, view *model.View) {
	if view == nil {
		delete(c.views, node)
	} else {
		c.views[node] = *view
	}
	// While no view of their node is published, its clients may be in several zones, and so have several views.
	for v, w := range c.viewers {
		if v.Node != node {
			continue
		}
		for s := range w.streams {
			s.move(c.viewOf(node, s.zone))
		}
	}
}

// move gives a stream another view.
func (s *Stream) move(view model.View) {
	c := s.cache
	before := s.view
	if view == before {
		return
	}
	w := c.useView(view)
	w.streams[s] = struct{}{}
	s.view = view
	for _, u := range c.slots {
		old, next := u.of(before), u.of(view)
		if old != next {
			s.note(c.asSeen(before, c.diff(u, old, next)))
		}
	}
	delete(c.viewers[before].streams, s)
	c.leaveView(before)
}

// nodeOf returns the node that a client's request names, "" if it names none. Agents and Envoys are their node's only
// ones and have its name for an id. Proxyless gRPC clients are many, have namespace/pod for an id, which is no node's
// name, and name their node beside it.
func nodeOf(node *corepb.Node) string {
	if name := node.GetMetadata().GetFields()[grpc.NodeKey].GetStringValue(); name != "" {
		return name
	}
	if strings.Contains(node.GetId(), "/") {
		return ""
	}
	return node.GetId()
}

// zoneOf returns the zone in the locality that a client's request names.
func zoneOf(node *corepb.Node) string { return node.GetLocality().GetZone() }
