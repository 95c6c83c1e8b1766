package source

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	kcache "k8s.io/client-go/tools/cache"

	"github.com/fairlead/fairlead/translate/kube"
	"github.com/fairlead/fairlead/translate/model"
)

// store is where a reflector puts the objects of one kind: it turns each into its change at once and keeps only the
// keys, to find after a new list which objects were deleted. The reflector's goroutine uses it, and the timer of held.
type store struct {
	kind    model.ObjectKind
	example runtime.Object
	reader  kube.Reader
	queue   *Queue
	holdFor time.Duration

	mu      sync.Mutex // Guards what follows.
	known   map[model.ObjectKey]bool
	held    held
	failure string          // What the last list or watch failed with; empty when it did not.
	told    []model.Problem // As queued last.
}

// item is a change on its way through the reflector, which reads an object's name.
type item struct{ Event }

// GetObjectMeta makes an item an object for the reflector.
func (i *item) GetObjectMeta() metav1.Object {
	return &metav1.ObjectMeta{Namespace: i.Key.Namespace, Name: i.Key.Name}
}

// Transformer makes a streamed list keep items, a twentieth of the objects' size, while it is incomplete.
func (s *store) Transformer() kcache.TransformFunc {
	return func(obj any) (any, error) { return s.item(obj) }
}

func (s *store) item(obj any) (*item, error) {
	switch o := obj.(type) {
	case *item:
		return o, nil
	case runtime.Object:
		seen := time.Now()
		return &item{Event{Object: s.reader.Read(o, seen), Seen: seen}}, nil
	default:
		return nil, fmt.Errorf("%T is not an object", obj)
	}
}

// Add queues a new object.
func (s *store) Add(obj any) error {
	i, err := s.item(obj)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.known[i.Key] = true
	s.settle(i.Key)
	s.queue.Set(i.Event)
	return nil
}

// Update queues a changed object.
func (s *store) Update(obj any) error { return s.Add(obj) }

// Delete queues the deletion of an object.
func (s *store) Delete(obj any) error {
	m, err := meta.Accessor(obj)
	if err != nil {
		return err
	}
	key := model.ObjectKey{Kind: s.kind, Namespace: m.GetNamespace(), Name: m.GetName()}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.known, key)
	s.settle(key)
	s.queue.Set(gone(key))
	return nil
}

// Replace queues a complete list, and the deletion of every object that is not in it, unless these are most: see held.
func (s *store) Replace(objs []any, _ string) error {
	changes := make([]Event, 0, len(objs))
	known := make(map[model.ObjectKey]bool, len(objs))
	for _, obj := range objs {
		i, err := s.item(obj)
		if err != nil {
			return err
		}
		known[i.Key] = true
		changes = append(changes, i.Event)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	lost := map[model.ObjectKey]bool{}
	for key := range s.known {
		if !known[key] {
			lost[key] = true
		}
	}
	s.holds(lost)
	for key := range lost {
		if s.held.keys[key] {
			known[key] = true
		} else {
			changes = append(changes, gone(key))
		}
	}
	s.known = known
	s.queue.Set(changes...)
	s.tell()
	s.queue.SetSynced(s.kind)
	return nil
}

func gone(key model.ObjectKey) Event {
	return Event{Object: model.Object{Key: key}, Seen: time.Now()}
}

// Resync does nothing: the translator keeps the objects that it took from the queue.
func (s *store) Resync() error { return nil }

// report records whether the API server can be read.
func (s *store) report(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failure = failureOf(err)
	s.tell()
}

// source names the list in problems.
func (s *store) source() string { return "API server's list of " + string(s.kind) + "s" }

// tell queues the problems of the list if they have changed. The caller has the store's lock.
func (s *store) tell() {
	problems := s.heldProblem()
	if s.failure != "" {
		problems = append(problems, model.Problem{Object: s.source(), Reason: model.Unreadable, Message: s.failure})
	}
	if slices.Equal(problems, s.told) {
		return
	}
	s.told = problems
	s.queue.Set(Event{Object: model.Object{Key: model.ObjectKey{Kind: KindSource, Name: s.source()}, Problems: problems}, Seen: time.Now()})
}

// close ends the timer of held.
func (s *store) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.letGo()
}

// failureOf returns what a list or watch failed with; nothing if it did not. The URL is left out: it has a timeout in it that
// is another one each time, and would make one outage many problems.
func failureOf(err error) string {
	if err == nil {
		return ""
	}
	if u := (*url.Error)(nil); errors.As(err, &u) {
		err = u.Err
	}
	return err.Error() + "; what was read before still counts, and reading goes on when the API server answers"
}
