package source

import (
	"fmt"
	"time"

	"github.com/fairlead/fairlead/translate/model"
)

// A list that lacks most of what the watch before said was there is more often an etcd that was restored, or an API server that
// does not see all of it, than a cluster of which most was deleted while nobody watched. To believe it would end every
// connection of the cluster. So what such a list lacks is kept for a while, with a Problem as the alarm, and deleted when the
// API server then still does not have it. Deletions that a watch delivers are not concerned.
const (
	// holdFor is for how long. An operator who means it restarts the control plane, which then remembers nothing.
	holdFor = 5 * time.Minute

	// minLost is how many objects a list has to lack at least, besides more than half of them.
	minLost = 10
)

// held are the objects that the last list lacks and that are kept.
type held struct {
	keys  map[model.ObjectKey]bool
	until time.Time
	timer *time.Timer // Ends it; nil while nothing is held.
}

// holds decides which of the objects that a list lacks are kept. The caller has the store's lock.
func (s *store) holds(lost map[model.ObjectKey]bool) {
	if len(lost) < minLost || 2*len(lost) <= len(s.known) {
		s.letGo()
		return
	}
	s.held.keys = lost
	if s.held.timer == nil {
		s.held.until = time.Now().Add(s.holdFor)
		s.held.timer = time.AfterFunc(s.holdFor, s.expire)
	}
}

// letGo ends that objects are held, without a decision about them. The caller has the store's lock.
func (s *store) letGo() {
	if s.held.timer != nil {
		s.held.timer.Stop()
	}
	s.held = held{}
}

// expire deletes what is held.
func (s *store) expire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Now().Before(s.held.until) {
		return // The timer was stopped too late, and others are held since.
	}
	var changes []Event
	for key := range s.held.keys {
		delete(s.known, key)
		changes = append(changes, gone(key))
	}
	s.letGo()
	s.queue.Set(changes...)
	s.tell()
}

// settle records that an object is there, or deleted, as a watch says. The caller has the store's lock.
func (s *store) settle(key model.ObjectKey) {
	if !s.held.keys[key] {
		return
	}
	delete(s.held.keys, key)
	if len(s.held.keys) == 0 {
		s.letGo()
	}
	s.tell()
}

// heldProblem returns the alarm.
func (s *store) heldProblem() []model.Problem {
	if len(s.held.keys) == 0 {
		return nil
	}
	return []model.Problem{{
		Object: s.source(), Reason: model.ListShrank,
		Message: fmt.Sprintf("%d of %d objects that were there are not in the list: they count on until %s, if the API server does not have them again or a watch says that they are deleted; look at etcd, or restart the control plane if they are meant to be gone",
			len(s.held.keys), len(s.known), s.held.until.UTC().Format(time.RFC3339)),
	}}
}
