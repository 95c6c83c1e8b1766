package source

import (
	"errors"
	"fmt"
	"net/url"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	kcache "k8s.io/client-go/tools/cache"

	"github.com/fairlead/fairlead/translate/kube"
	"github.com/fairlead/fairlead/translate/model"
)

// store is where a reflector puts the objects of one kind: it turns each into its change at once and keeps only the
// keys, to find after a new list which objects were deleted. Only the reflector's goroutine uses it.
type store struct {
	kind    model.ObjectKind
	example runtime.Object
	reader  kube.Reader
	queue   *Queue

	known   map[model.ObjectKey]bool
	failure string // What the last list or watch failed with; empty when it did not.
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
	s.known[i.Key] = true
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
	delete(s.known, key)
	s.queue.Set(gone(key))
	return nil
}

// Replace queues a complete list, and the deletion of every object that is not in it.
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
	for key := range s.known {
		if !known[key] {
			changes = append(changes, gone(key))
		}
	}
	s.known = known
	s.queue.Set(changes...)
	s.queue.SetSynced(s.kind)
	return nil
}

func gone(key model.ObjectKey) Event {
	return Event{Object: model.Object{Key: key}, Seen: time.Now()}
}

// Resync does nothing: the translator keeps the objects that it took from the queue.
func (s *store) Resync() error { return nil }

// report queues the problem that the API server cannot be read, or removes it.
func (s *store) report(err error) {
	failure := failureOf(err)
	if failure == s.failure {
		return
	}
	s.failure = failure
	object := "API server's list of " + string(s.kind) + "s"
	c := Event{Object: model.Object{Key: model.ObjectKey{Kind: KindSource, Name: object}}, Seen: time.Now()}
	if err != nil {
		c.Problems = []model.Problem{{Object: object, Reason: model.Unreadable, Message: failure}}
	}
	s.queue.Set(c)
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
