package discovery

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
)

const namespace = "fairlead"

// slice returns an EndpointSlice of a Service, with a port of that name.
func slice(service, name, port string, endpoints ...discoveryv1.Endpoint) *discoveryv1.EndpointSlice {
	number := int32(18000)
	return &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: service}},
		Ports:      []discoveryv1.EndpointPort{{Name: &port, Port: &number}},
		Endpoints:  endpoints,
	}
}

func endpoint(address string, ready ...bool) discoveryv1.Endpoint {
	e := discoveryv1.Endpoint{Addresses: []string{address}}
	if len(ready) > 0 {
		e.Conditions.Ready = &ready[0]
	}
	return e
}

func TestAddressesOf(t *testing.T) {
	got := addressesOf([]any{
		slice("s", "4", PortName, endpoint("10.0.0.2"), endpoint("10.0.0.1", true), endpoint("10.0.0.3", false)),
		slice("s", "6", PortName, endpoint("fd00::1", true), discoveryv1.Endpoint{}),
		slice("s", "copy", PortName, endpoint("10.0.0.1", true)), // As happens while a slice is split.
		slice("s", "other", "metrics", endpoint("10.0.0.4", true)),
	})
	want := []string{"10.0.0.1:18000", "10.0.0.2:18000", "[fd00::1]:18000"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// told is what was set last.
type told struct {
	mu   sync.Mutex
	list []string
}

func (l *told) set(list []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.list = slices.Clone(list)
}

// await waits until the addresses are these.
func (l *told) await(t *testing.T, want ...string) {
	t.Helper()
	eventually(t, func() error {
		l.mu.Lock()
		defer l.mu.Unlock()
		if diff := cmp.Diff(want, l.list); diff != "" {
			return fmt.Errorf("addresses: %s", diff)
		}
		return nil
	})
}

// The addresses follow the Service and no other, outlive the last ready replica, and are remembered.
func TestReplicas(t *testing.T) {
	client := fake.NewClientset(slice("control-plane", "a", PortName, endpoint("10.0.0.1", true)), slice("other", "b", PortName, endpoint("10.0.0.9", true)))
	cfg := ReplicasConfig{
		Client: client, Service: types.NamespacedName{Namespace: namespace, Name: "control-plane"},
		Path: filepath.Join(t.TempDir(), "replicas"), Log: slog.New(slog.DiscardHandler),
	}
	r := NewReplicas(cfg)
	if got := r.Remembered(); len(got) != 0 {
		t.Errorf("remembered %q before the first start", got)
	}
	var last told
	run(t, func(ctx context.Context) error { return r.Run(ctx, last.set) })
	last.await(t, "10.0.0.1:18000")

	update := func(endpoints ...discoveryv1.Endpoint) {
		_, err := client.DiscoveryV1().EndpointSlices(namespace).Update(t.Context(), slice("control-plane", "a", PortName, endpoints...), metav1.UpdateOptions{})
		if err != nil {
			t.Fatal(err)
		}
	}
	update(endpoint("10.0.0.2", true), endpoint("10.0.0.1", true))
	last.await(t, "10.0.0.1:18000", "10.0.0.2:18000")
	update(endpoint("10.0.0.2", false), endpoint("10.0.0.1", false))
	update(endpoint("10.0.0.2", false), endpoint("10.0.0.1", false), endpoint("10.0.0.3", true))
	last.await(t, "10.0.0.3:18000")
	update(endpoint("10.0.0.3", false))
	eventually(t, func() error {
		if got := NewReplicas(cfg).Remembered(); !slices.Equal(got, []string{"10.0.0.3:18000"}) {
			return fmt.Errorf("remembered %q", got)
		}
		return nil
	})
	last.await(t, "10.0.0.3:18000")
}

// What a power cut left of the file is used as far as it can be.
func TestDamagedMemory(t *testing.T) {
	path := filepath.Join(t.TempDir(), "replicas")
	if err := os.WriteFile(path, []byte("10.0.0.1:18000\n10.0.0.2:18\x00\n10.0"), 0o600); err != nil {
		t.Fatal(err)
	}
	got := NewReplicas(ReplicasConfig{Path: path}).Remembered()
	if diff := cmp.Diff([]string{"10.0.0.1:18000"}, got); diff != "" {
		t.Error(diff)
	}
}

// A DaemonSet counts as deleted if it existed and was deleted, or is being deleted, and not before the first list.
func TestDaemonSet(t *testing.T) {
	client := fake.NewClientset()
	d := NewDaemonSet(client, types.NamespacedName{Namespace: namespace, Name: "agent"}, slog.New(slog.DiscardHandler))
	run(t, d.Run)
	sets := client.AppsV1().DaemonSets(namespace)
	await := func(want bool) {
		t.Helper()
		eventually(t, func() error {
			if d.Deleted() != want {
				return fmt.Errorf("deleted: %v, want %v", d.Deleted(), want)
			}
			return nil
		})
	}
	object := &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "agent"}}
	must := func(_ *appsv1.DaemonSet, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(sets.Create(t.Context(), object, metav1.CreateOptions{}))
	if d.Deleted() {
		t.Error("deleted before it was there")
	}
	leaving := object.DeepCopy()
	now := metav1.Now()
	leaving.DeletionTimestamp, leaving.Finalizers = &now, []string{"foregroundDeletion"}
	must(sets.Update(t.Context(), leaving, metav1.UpdateOptions{}))
	await(true)
	must(sets.Update(t.Context(), object, metav1.UpdateOptions{})) // As when it is made again between two lists.
	await(false)
	must(nil, sets.Delete(t.Context(), "agent", metav1.DeleteOptions{}))
	await(true)
}

// run runs something until the test ends.
func run(t *testing.T, f func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- f(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// eventually waits for a condition.
func eventually(t *testing.T, condition func() error) {
	t.Helper()
	late := time.After(10 * time.Second)
	for {
		err := condition()
		if err == nil {
			return
		}
		select {
		case <-late:
			t.Fatal(err)
		case <-time.After(time.Millisecond):
		}
	}
}
