package reach

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/klog/v2"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

func TestMain(m *testing.M) {
	klog.SetSlogLogger(slog.New(slog.DiscardHandler))
	os.Exit(m.Run())
}

// apiServer answers what Cluster asks: lists of slices, pods, and port forwards, which it connects to this machine's own ports.
type apiServer struct {
	t      *testing.T
	mu     sync.Mutex
	slices []discoveryv1.EndpointSlice
	pods   map[string]int32 // The admin port of each pod; -1: the pod's node does not answer.
	asked  int              // How often ports were forwarded.
}

func (s *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	name, forward := strings.CutSuffix(strings.TrimPrefix(r.URL.Path, "/api/v1/namespaces/fairlead-system/pods/"), "/portforward")
	port, known := s.pods[name]
	w.Header().Set("Content-Type", "application/json")
	switch {
	case r.URL.Path == "/api/v1/namespaces/shop/services/web":
		s.write(w, corev1.Service{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Service"}, ObjectMeta: metav1.ObjectMeta{Name: "web", ResourceVersion: "7"}})
	case strings.HasSuffix(r.URL.Path, "/shop/endpointslices"):
		if got, want := r.URL.Query().Get("labelSelector"), "kubernetes.io/service-name=web,!service.kubernetes.io/headless"; got != want {
			s.t.Errorf("selects %s, want %s", got, want)
		}
		s.write(w, discoveryv1.EndpointSliceList{
			TypeMeta: metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSliceList"},
			Items: []discoveryv1.EndpointSlice{
				{ObjectMeta: metav1.ObjectMeta{Name: "web-1", ResourceVersion: "9"}, AddressType: discoveryv1.AddressTypeIPv4},
				{ObjectMeta: metav1.ObjectMeta{Name: "web-names", ResourceVersion: "9"}, AddressType: discoveryv1.AddressTypeFQDN},
			},
		})
	case strings.HasSuffix(r.URL.Path, "/endpointslices"):
		if got, want := r.URL.Query().Get("labelSelector"), "kubernetes.io/service-name=fairlead"; got != want {
			s.t.Errorf("selects %s, want %s", got, want)
		}
		s.write(w, discoveryv1.EndpointSliceList{
			TypeMeta: metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSliceList"}, Items: s.slices,
		})
	case !known:
		http.Error(w, "no such pod", http.StatusNotFound)
	case forward && port < 0:
		http.Error(w, "error dialing backend", http.StatusBadGateway)
	case forward:
		s.asked++
		s.upgrade(w, r)
	default:
		s.write(w, corev1.Pod{
			TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}, ObjectMeta: metav1.ObjectMeta{Name: name},
			Spec: corev1.PodSpec{Containers: []corev1.Container{{Ports: []corev1.ContainerPort{{Name: "xds", ContainerPort: 1}, {Name: adminPort, ContainerPort: port}}}}},
		})
	}
}

func (s *apiServer) write(w io.Writer, object any) {
	if err := json.NewEncoder(w).Encode(object); err != nil {
		s.t.Error(err)
	}
}

// upgrade forwards ports as a kubelet does; a WebSocket it refuses, so that the client falls back to SPDY alone.
func (s *apiServer) upgrade(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		http.Error(w, "no WebSockets here", http.StatusBadRequest)
		return
	}
	w.Header().Set(httpstream.HeaderProtocolVersion, portforward.PortForwardProtocolV1Name)
	conn := spdy.NewResponseUpgrader().UpgradeResponse(w, r, func(stream httpstream.Stream, replied <-chan struct{}) error {
		go func() {
			<-replied
			if stream.Headers().Get(corev1.StreamType) == corev1.StreamTypeError {
				_ = stream.Close() // Nothing went wrong.
				return
			}
			to, err := (&net.Dialer{}).DialContext(context.Background(), "tcp", "127.0.0.1:"+stream.Headers().Get(corev1.PortHeader))
			if err != nil {
				_ = stream.Reset()
				return
			}
			defer to.Close()
			go func() { _, _ = io.Copy(to, stream) }()
			_, _ = io.Copy(stream, to)
			_ = stream.Close()
		}()
		return nil
	})
	if conn != nil {
		s.t.Cleanup(func() { _ = conn.Close() })
	}
}

// endpoint is one of a pod.
func endpoint(pod string, terminating bool) discoveryv1.Endpoint {
	return discoveryv1.Endpoint{
		Addresses: []string{"10.244.1.1"}, Conditions: discoveryv1.EndpointConditions{Terminating: &terminating},
		TargetRef: &corev1.ObjectReference{Kind: "Pod", Name: pod, UID: types.UID(pod)},
	}
}

// newCluster returns a Cluster of an API server, by a kubeconfig as people have it.
func newCluster(t *testing.T, s *apiServer) *Cluster {
	t.Helper()
	s.t = t
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	path := filepath.Join(t.TempDir(), "kubeconfig")
	content := fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: other,
clusters: [{name: c, cluster: {server: "%s"}}, {name: other, cluster: {server: "http://127.0.0.1:1"}}],
contexts: [{name: here, context: {cluster: c, namespace: shop}}, {name: other, context: {cluster: other}}]}`, server.URL)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := NewCluster(ClusterConfig{Kubeconfig: path, Context: "here", Service: types.NamespacedName{Namespace: "fairlead-system", Name: "fairlead"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// Each replica is reached through the API server, ready or not; one whose node is gone is named, and one that ends is none.
func TestClusterList(t *testing.T) {
	admin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") }))
	t.Cleanup(admin.Close)
	port := int32(admin.Listener.Addr().(*net.TCPAddr).Port)
	s := &apiServer{
		pods: map[string]int32{"a": port, "b": -1, "ends": port},
		slices: []discoveryv1.EndpointSlice{
			{Endpoints: []discoveryv1.Endpoint{endpoint("b", false), endpoint("a", false), endpoint("ends", true)}},
			{Endpoints: []discoveryv1.Endpoint{endpoint("a", false)}}, // The other family's.
		},
	}
	c := newCluster(t, s)
	if c.Namespace() != "shop" {
		t.Errorf("namespace %q, want that of the context", c.Namespace())
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for range 2 { // The second time, the way is there already.
		all, err := c.List(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if len(all) != 2 || all[0].Name != "a" || all[1].Name != "b" {
			t.Fatalf("replicas %+v, want a and b", all)
		}
		if all[0].Err != nil || all[1].Err == nil || !strings.Contains(all[1].Err.Error(), "through the API server") {
			t.Errorf("errors %v and %v", all[0].Err, all[1].Err)
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+all[0].Address, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		if err := errors.Join(err, resp.Body.Close()); err != nil || string(body) != "ok" {
			t.Errorf("answer %q, %v", body, err)
		}
	}
	if s.asked != 2 { // A WebSocket that is refused, and SPDY.
		t.Errorf("%d ports were forwarded to the pod that answers, want one, in two attempts", s.asked)
	}
	s.mu.Lock()
	s.slices = nil
	s.mu.Unlock()
	if _, err := c.List(ctx); err == nil || !strings.Contains(err.Error(), "fairlead-system/fairlead has no endpoints") {
		t.Errorf("error %v", err)
	}
}

func TestVersions(t *testing.T) {
	got, err := newCluster(t, &apiServer{}).Versions(t.Context(), "shop/web")
	if want := map[string]string{"Service shop/web": "7", "EndpointSlice shop/web-1": "9"}; err != nil || !maps.Equal(got, want) {
		t.Errorf("versions %v, %v; want %v", got, err, want)
	}
}

func TestNoKubeconfig(t *testing.T) {
	_, err := NewCluster(ClusterConfig{Kubeconfig: filepath.Join(t.TempDir(), "missing")})
	if err == nil || !strings.Contains(err.Error(), "--kubeconfig") {
		t.Errorf("error %v", err)
	}
}
