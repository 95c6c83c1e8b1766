package source

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/fairlead/fairlead/translate/kube"
	"github.com/fairlead/fairlead/translate/model"
)

// apiServer speaks as much of the API server's protocol as a reflector needs: a watch that begins with the objects there
// are and a bookmark, and goes on with what is sent. The whole of it is tested against a real one in test/e2e.
type apiServer struct {
	t       *testing.T
	server  *httptest.Server
	streams chan stream

	mu       sync.Mutex
	objects  map[string][]string // By resource: what a watch begins with.
	refuse   map[string]bool     // Resources that may not be read.
	requests map[string]url.Values
	accept   string
}

// stream is a watch that is open.
type stream struct {
	resource string
	events   chan<- string
}

func newAPIServer(t *testing.T) *apiServer {
	a := &apiServer{
		t:        t,
		streams:  make(chan stream, 16),
		objects:  map[string][]string{},
		refuse:   map[string]bool{},
		requests: map[string]url.Values{},
	}
	a.server = httptest.NewServer(a)
	t.Cleanup(func() {
		a.server.CloseClientConnections()
		a.server.Close()
	})
	return a
}

func (a *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	resource := r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]
	a.mu.Lock()
	a.requests[resource], a.accept = r.URL.Query(), r.Header.Get("Accept")
	objects, refuse := a.objects[resource], a.refuse[resource]
	a.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	if refuse {
		w.WriteHeader(http.StatusForbidden)
		fmt.Fprintf(w, `{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Forbidden", "code": 403, "message": "%s is forbidden"}`, resource)
		return
	}
	if r.URL.Query().Get("watch") != "true" { // What a reflector falls back to when a watch fails.
		fmt.Fprintf(w, `{%sList", "metadata": {"resourceVersion": "100"}, "items": [%s]}`, kindOf[resource], strings.Join(objects, ","))
		return
	}
	events := make(chan string, 16)
	if r.URL.Query().Get("sendInitialEvents") == "true" {
		for _, o := range objects {
			fmt.Fprintf(w, `{"type": "ADDED", "object": %s}`, o)
		}
		fmt.Fprintf(w, `{"type": "BOOKMARK", "object": %s}`, bookmarkOf(resource))
	}
	w.(http.Flusher).Flush()
	a.streams <- stream{resource, events}
	for {
		select {
		case e := <-events:
			fmt.Fprint(w, e)
			w.(http.Flusher).Flush()
		case <-r.Context().Done():
			return
		}
	}
}

// kindOf is how objects of a resource begin, but for the closing quote.
var kindOf = map[string]string{
	"services":       `"apiVersion": "v1", "kind": "Service`,
	"nodes":          `"apiVersion": "v1", "kind": "Node`,
	"endpointslices": `"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice`,
}

// bookmarkOf says that a watch has sent all objects there are.
func bookmarkOf(resource string) string {
	return fmt.Sprintf(`{%s", "metadata": {"resourceVersion": "100", "annotations": {"%s": "true"}}}`, kindOf[resource], metav1.InitialEventsAnnotationKey)
}

// opened waits for watches of all three resources and returns them.
func (a *apiServer) opened() map[string]chan<- string {
	watches := map[string]chan<- string{}
	for len(watches) < 3 {
		select {
		case s := <-a.streams:
			watches[s.resource] = s.events
		case <-a.t.Context().Done():
			a.t.Fatal("the test ended before all resources were watched")
		}
	}
	return watches
}

// client returns a client as NewClient makes it, of the server at an address.
func client(t *testing.T, a *apiServer) kubernetes.Interface {
	t.Helper()
	c, err := newClient(&rest.Config{Host: a.server.URL})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// slice returns a slice of the Service web with one endpoint.
func sliceOf(name, address, version string) string {
	return fmt.Sprintf(`{"kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1",
		"metadata": {"name": "%s", "namespace": "default", "resourceVersion": "%s", "labels": {"%s": "web"}},
		"addressType": "IPv4", "ports": [{"name": "", "port": 80}], "endpoints": [{"addresses": ["%s"]}]}`, name, version, discoveryv1.LabelServiceName, address)
}

func sliceKey(name string) model.ObjectKey {
	return model.ObjectKey{Kind: model.KindEndpointSlice, Namespace: "default", Name: name}
}

// endpoint returns a condition: the slice has exactly this endpoint, or does not exist if it is empty.
func (f *follower) endpoint(slice, address string) func() bool {
	return func() bool {
		s := f.objects[sliceKey(slice)].Slice
		return address == "" && s == nil || s != nil && len(s.Endpoints) == 1 && s.Endpoints[0].Address.String() == address
	}
}

func TestKubernetesStreamsListsAndFollows(t *testing.T) {
	a := newAPIServer(t)
	a.objects["services"] = []string{manifestOf("web", "80")}
	a.objects["endpointslices"] = []string{sliceOf("web-1", "10.244.0.1", "7"), sliceOf("web-2", "10.244.0.2", "8")}
	a.objects["nodes"] = []string{`{"kind": "Node", "apiVersion": "v1", "metadata": {"name": "n1"}}`}
	f := follow(t, NewKubernetes(KubernetesConfig{Client: client(t, a)}))
	watches := a.opened()
	f.until("all is listed", func() bool {
		return f.synced && f.endpoint("web-1", "10.244.0.1")() && f.endpoint("web-2", "10.244.0.2")() && f.objects[model.ObjectKey{Kind: model.KindNode, Name: "n1"}].Node != nil
	})
	if c := f.objects[sliceKey("web-1")].Slice.Version; c.ResourceVersion != "7" || c.At.IsZero() {
		t.Errorf("change %+v, want version 7 and a time", c)
	}

	watches["endpointslices"] <- fmt.Sprintf(`{"type": "MODIFIED", "object": %s}`, sliceOf("web-1", "10.244.0.9", "101"))
	f.until("a change arrives", f.endpoint("web-1", "10.244.0.9"))
	watches["endpointslices"] <- fmt.Sprintf(`{"type": "DELETED", "object": %s}`, sliceOf("web-2", "10.244.0.2", "102"))
	f.until("a removal arrives", f.endpoint("web-2", ""))
	watches["endpointslices"] <- fmt.Sprintf(`{"type": "ADDED", "object": %s}`, sliceOf("web-3", "10.244.0.3", "103"))
	f.until("a new object arrives", f.endpoint("web-3", "10.244.0.3"))
}

func TestKubernetesAsksForWhatKubeProxyAsksFor(t *testing.T) {
	for _, test := range []struct{ name, proxy, services string }{
		{"the cluster's default proxy", "", "!" + kube.LabelServiceProxyName},
		{"another proxy", "fairlead", kube.LabelServiceProxyName + "=fairlead"},
	} {
		t.Run(test.name, func(t *testing.T) {
			a := newAPIServer(t)
			f := follow(t, NewKubernetes(KubernetesConfig{Client: client(t, a), ServiceProxyName: test.proxy}))
			f.until("the empty cluster is listed", func() bool { return f.synced })
			a.mu.Lock()
			defer a.mu.Unlock()
			for resource, want := range map[string][2]string{
				"services":       {test.services, "spec.clusterIP!=None"},
				"endpointslices": {"!service.kubernetes.io/headless", ""},
				"nodes":          {"", ""},
			} {
				got := [2]string{a.requests[resource].Get("labelSelector"), a.requests[resource].Get("fieldSelector")}
				if got != want {
					t.Errorf("%s were selected by %q, want %q", resource, got, want)
				}
				if a.requests[resource].Get("sendInitialEvents") != "true" {
					t.Errorf("%s were not streamed: %v", resource, a.requests[resource])
				}
			}
			if !strings.HasPrefix(a.accept, "application/vnd.kubernetes.protobuf") {
				t.Errorf("asked for %s, not first of all for protobuf", a.accept)
			}
		})
	}
}

func TestKubernetesSaysWhatItMayNotRead(t *testing.T) {
	a := newAPIServer(t)
	a.refuse["nodes"] = true
	f := follow(t, NewKubernetes(KubernetesConfig{Client: client(t, a)}))
	source := "API server's list of Nodes"
	f.until("the refusal is a problem", f.problem(source, model.Unreadable))
	if f.synced {
		t.Error("synced without Nodes")
	}
	if m := f.objects[sourceKey(source)].Problems[0].Message; !strings.Contains(m, "nodes is forbidden") {
		t.Errorf("problem %q does not say what the API server said", m)
	}

	a.mu.Lock()
	a.refuse["nodes"] = false
	a.mu.Unlock()
	f.until("all is listed", func() bool { return f.synced })
	f.until("the problem is gone", f.problem(source, ""))
}

// The API server is gone for a while; meanwhile one slice changed, one was removed and one came.
func TestKubernetesSurvivesARestartOfTheAPIServer(t *testing.T) {
	a := newAPIServer(t)
	a.objects["endpointslices"] = []string{sliceOf("web-1", "10.244.0.1", "7"), sliceOf("web-2", "10.244.0.2", "8")}
	f := follow(t, NewKubernetes(KubernetesConfig{Client: client(t, a)}))
	watches := a.opened()
	f.until("all is listed", func() bool { return f.synced && f.endpoint("web-2", "10.244.0.2")() })

	// The new server knows nothing of the version that the old one was at.
	watches["endpointslices"] <- `{"type": "ERROR", "object": {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Expired", "code": 410}}`
	a.server.CloseClientConnections()
	a.server.Listener.Close()
	f.until("the loss is a problem", f.problem("API server's list of EndpointSlices", model.Unreadable))
	if !f.endpoint("web-1", "10.244.0.1")() {
		t.Errorf("what was known is gone:\n%s", f)
	}
	if m := f.objects[sourceKey("API server's list of EndpointSlices")].Problems[0].Message; strings.Contains(m, "timeout") {
		t.Errorf("problem %q differs from one attempt to the next", m)
	}

	a.mu.Lock()
	a.objects["endpointslices"] = []string{sliceOf("web-1", "10.244.0.9", "201"), sliceOf("web-3", "10.244.0.3", "202")}
	a.mu.Unlock()
	a.restart()
	f.until("the new state is there", func() bool {
		return f.endpoint("web-1", "10.244.0.9")() && f.endpoint("web-2", "")() && f.endpoint("web-3", "10.244.0.3")()
	})
	f.until("the problem is gone", f.problem("API server's list of EndpointSlices", ""))
}

// A list that lacks most of what was there is not believed at once.
//
//  1. The API server restarts, and its list has none of the many slices: they stay, which is a problem.
//  2. A watch says that one of them is deleted: it is. Another comes again.
//  3. The API server restarts and has all of them again: the problem is gone, and they are up to date.
//  4. It restarts and has lost them again, for good: after a while that is believed.
func TestAListThatShrinksIsHeldBack(t *testing.T) {
	const many = 20
	a := newAPIServer(t)
	all := func(from int, address string) (slices []string) {
		for i := from; i < many; i++ {
			slices = append(slices, sliceOf(fmt.Sprint("web-", i), address, "7"))
		}
		return slices
	}
	a.objects["endpointslices"] = all(0, "10.244.0.1")
	f := follow(t, NewKubernetes(KubernetesConfig{Client: client(t, a), holdFor: 2 * time.Second}))
	source := "API server's list of EndpointSlices"
	everyone := func(from int, address string) func() bool {
		return func() bool {
			for i := from; i < many; i++ {
				if !f.endpoint(fmt.Sprint("web-", i), address)() {
					return false
				}
			}
			return true
		}
	}
	watches := a.opened()
	f.until("all is listed", func() bool { return f.synced && everyone(0, "10.244.0.1")() })
	relist := func(slices []string) {
		t.Helper()
		a.mu.Lock()
		a.objects["endpointslices"] = slices
		a.mu.Unlock()
		watches["endpointslices"] <- `{"type": "ERROR", "object": {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Expired", "code": 410}}`
		select {
		case s := <-a.streams:
			watches[s.resource] = s.events
		case <-t.Context().Done():
			t.Fatal("the test ended before there was another watch")
		}
	}

	relist(nil)
	f.until("the loss is a problem", f.problem(source, model.ListShrank))
	if !everyone(0, "10.244.0.1")() {
		t.Errorf("what was known is gone:\n%s", f)
	}
	if m := f.objects[sourceKey(source)].Problems[0].Message; !strings.Contains(m, "20 of 20 objects that were there are not in the list: they count on until ") {
		t.Errorf("problem %q", m)
	}
	watches["endpointslices"] <- fmt.Sprintf(`{"type": "DELETED", "object": %s}`, sliceOf("web-0", "10.244.0.1", "101"))
	f.until("a removal arrives", f.endpoint("web-0", ""))

	relist(all(1, "10.244.0.2"))
	f.until("all of them are back", func() bool { return everyone(1, "10.244.0.2")() && f.problem(source, "")() })

	relist(nil)
	f.until("the loss is a problem again", f.problem(source, model.ListShrank))
	f.until("it is believed at last", func() bool { return everyone(0, "")() && f.problem(source, "")() })
}

// A list that lacks a few objects, or most of a few, is believed.
func TestAListThatShrinksALittle(t *testing.T) {
	for _, test := range []struct{ before, after int }{{9, 0}, {30, 15}, {1000, 600}} {
		q := NewQueue()
		s := NewKubernetes(KubernetesConfig{}).store(model.KindEndpointSlice, nil, q)
		list := func(n int) (items []any) {
			for i := range n {
				items = append(items, &item{Event{Object: model.Object{Key: sliceKey(fmt.Sprint(i))}}})
			}
			return items
		}
		for _, n := range []int{test.before, test.after} {
			if err := s.Replace(list(n), ""); err != nil {
				t.Fatal(err)
			}
		}
		if len(s.known) != test.after || len(s.told) != 0 {
			t.Errorf("%d of %d: %d are known, problems %v", test.after, test.before, len(s.known), s.told)
		}
	}
}

// restart serves again where the server that was closed did.
func (a *apiServer) restart() {
	l, err := net.Listen("tcp", a.server.Listener.Addr().String())
	if err != nil {
		a.t.Fatal(err)
	}
	again := &httptest.Server{Listener: l, Config: &http.Server{Handler: a}}
	again.Start()
	a.t.Cleanup(func() {
		again.CloseClientConnections()
		again.Close()
	})
}

func TestNewClientNamesTheFix(t *testing.T) {
	t.Setenv("KUBECONFIG", "")
	t.Setenv("HOME", t.TempDir())
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	for _, file := range []string{"", t.TempDir() + "/missing"} {
		if _, err := NewClient(file); err == nil || !strings.Contains(err.Error(), "--kubeconfig") {
			t.Errorf("without an API server, kubeconfig %q: error %v, want one that names --kubeconfig", file, err)
		}
	}
}
