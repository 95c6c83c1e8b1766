package cache

import (
	"maps"
	"slices"

	"github.com/fairlead/fairlead/translate/model"
)

// rendered is what a Contribution has for a variant.
type rendered struct {
	resources []Resource // In order of resourceName, each name once.
	err       error
}

// render asks the Contribution for a variant. It is called without the cache's lock: rendering marshals.
func (s *slot) render(variant string) *rendered {
	resources, err := s.contribution.Resources(variant)
	if err != nil {
		return &rendered{err: err}
	}
	resources = slices.Clone(resources)
	slices.SortStableFunc(resources, func(a, b Resource) int { return a.key().compare(b.key()) })
	resources = slices.CompactFunc(resources, func(a, b Resource) bool { return a.key() == b.key() })
	coverClusters(resources)
	return &rendered{resources: resources}
}

// want is a variant that is needed and not rendered.
type want struct {
	slot    *slot
	variant string
}

// wants is a set of them.
type wants map[want]struct{}

// add adds the variant of a slot that a view needs.
func (w wants) add(s *slot, view model.View) {
	if name := s.contribution.Variant(view); s.variants[name] == nil && s.rendered[name] == nil {
		w[want{s, name}] = struct{}{}
	}
}

// lockRendered takes the cache's lock once what missing adds is rendered. missing is called with the lock, and again after
// what it added was rendered without it, since the cache may have changed meanwhile.
func (c *Cache) lockRendered(missing func(wants)) {
	c.mu.Lock()
	for {
		need := wants{}
		missing(need)
		if len(need) == 0 {
			return
		}
		c.mu.Unlock()
		done := make(map[want]*rendered, len(need))
		for w := range need {
			done[w] = w.slot.render(w.variant)
		}
		c.mu.Lock()
		for w, r := range done {
			w.slot.rendered[w.variant] = r
		}
	}
}

// wantView adds what a client needs whose view is not in use yet.
func (c *Cache) wantView(w wants, view model.View) {
	if c.viewers[view] != nil {
		return
	}
	for _, s := range c.slots {
		w.add(s, view)
	}
}

// wantUpdate adds what connected clients need of an update with these new slots, nil for those that it removes.
func (c *Cache) wantUpdate(w wants, u Update, next map[string]*slot) {
	for view := range c.viewers {
		for _, s := range next {
			if s != nil {
				w.add(s, view)
			}
		}
		if moved, ok := u.Views[view.Node]; ok {
			c.wantMoved(w, view, moved, next)
		}
	}
}

// wantMoved adds what the clients with a view need that get another one; nil means that the update removes their node's view.
func (c *Cache) wantMoved(w wants, view model.View, moved *model.View, next map[string]*slot) {
	for stream := range c.viewers[view].streams {
		to := model.View{Node: view.Node, Zone: stream.zone}
		if moved != nil {
			to = *moved
		}
		if c.viewers[to] != nil {
			continue
		}
		c.wantView(w, to)
		for _, s := range next {
			if s != nil {
				w.add(s, to)
			}
		}
	}
}

// noteFailure records why a slot's Contribution cannot be rendered.
func (c *Cache) noteFailure(s *slot) {
	if s.err != nil && c.failures[s.id] == nil {
		c.failures[s.id] = s.err
		c.failed = true
	}
}

// unlockAndReport releases the cache's lock, and calls Config.Failed if a Contribution failed under it.
func (c *Cache) unlockAndReport() {
	failed := c.failed
	c.failed = false
	c.mu.Unlock()
	if failed && c.onFailure != nil {
		c.onFailure()
	}
}

// Failures returns why Contributions could not be rendered, by ID. They contribute nothing until they are replaced.
func (c *Cache) Failures() map[string]error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.failures)
}
