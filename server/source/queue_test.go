package source

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/fairlead/fairlead/translate/model"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// service returns a change of a Service that is told apart by its number of ports.
func service(name string, ports int, seen time.Time) Event {
	key := model.ObjectKey{Kind: model.KindService, Namespace: "default", Name: name}
	return Event{Object: model.Object{Key: key, Service: &model.Service{Ports: make([]model.Port, ports)}}, Seen: seen}
}

// summary says what a batch holds, in order.
func summary(b Batch) []string {
	var all []string
	for _, c := range b.Events {
		ports := -1
		if c.Service != nil {
			ports = len(c.Service.Ports)
		}
		all = append(all, fmt.Sprintf("%s %d %d", c.Key.Name, ports, c.Seen.Unix()))
	}
	return all
}

func TestQueueMergesChangesOfAnObject(t *testing.T) {
	q := NewQueue()
	q.Set(service("a", 1, time.Unix(100, 0)), service("b", 1, time.Unix(101, 0)))
	q.Set(service("a", 2, time.Unix(102, 0)))
	q.Set(service("b", 3, time.Unix(103, 0)))
	if oldest, n := q.Oldest(); oldest.Unix() != 100 || n != 2 {
		t.Errorf("%d changes wait since %d, want 2 since 100", n, oldest.Unix())
	}

	b, err := q.Take(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	// The newest content, and how long it has been waited for.
	if diff := cmp.Diff([]string{"a 2 100", "b 3 101"}, summary(b)); diff != "" {
		t.Errorf("batch (-want +got):\n%s", diff)
	}
	if b.Synced {
		t.Error("synced although no kind is")
	}

	q.Set(service("a", 4, time.Unix(104, 0)))
	if b, err = q.Take(t.Context()); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"a 4 104"}, summary(b)); diff != "" {
		t.Errorf("second batch (-want +got):\n%s", diff)
	}
}

func TestQueueIsSyncedWhenAllKindsAre(t *testing.T) {
	q := NewQueue()
	q.SetSynced(model.KindService)
	q.SetSynced(model.KindNode)
	if diff := cmp.Diff([]model.ObjectKind{model.KindEndpointSlice}, q.Unsynced()); diff != "" {
		t.Errorf("unsynced (-want +got):\n%s", diff)
	}
	if b, err := q.Take(t.Context()); err != nil || b.Synced {
		t.Errorf("synced: %v, %v, before there were slices", b.Synced, err)
	}

	// A cluster may have no slices at all: the word alone has to wake the taker.
	q.SetSynced(model.KindEndpointSlice)
	if b, err := q.Take(t.Context()); err != nil || !b.Synced || len(b.Events) != 0 {
		t.Errorf("synced: %v, %d changes, %v; want synced without changes", b.Synced, len(b.Events), err)
	}
	q.Set(service("a", 1, time.Unix(100, 0)))
	if b, err := q.Take(t.Context()); err != nil || !b.Synced {
		t.Errorf("synced: %v, %v; want it to stay so", b.Synced, err)
	}

	// Said again, as after a new list, it is no news.
	q.SetSynced(model.KindEndpointSlice)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if b, err := q.Take(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("took %+v, %v; want nothing", b, err)
	}
}

func TestTakeEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := NewQueue().Take(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want %v", err, context.Canceled)
	}
}
