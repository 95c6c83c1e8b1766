package source

import (
	"cmp"
	"context"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	kcache "k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/fairlead/fairlead/translate/kube"
	"github.com/fairlead/fairlead/translate/model"
)

// NewClient returns a client of the API server that the kubeconfig file names. Without one, the usual places are tried:
// $KUBECONFIG, the home directory, and the service account of the pod that this process runs in.
func NewClient(kubeconfig string) (kubernetes.Interface, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = kubeconfig
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, nil).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("find the API server (give --kubeconfig, or run in a pod): %w", err)
	}
	return newClient(config)
}

func newClient(config *rest.Config) (kubernetes.Interface, error) {
	// Decoding a slice from protobuf takes a quarter of the time that JSON takes.
	config.ContentType = runtime.ContentTypeProtobuf
	config.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	// A replica that starts has a token of every agent reviewed. The API server limits its load by itself.
	config.QPS = -1
	config.UserAgent = rest.DefaultKubernetesUserAgent()
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("make a client of %s: %w", config.Host, err)
	}
	return client, nil
}

// KubernetesConfig configures the source kubernetes.
type KubernetesConfig struct {
	Client           kubernetes.Interface
	ServiceProxyName string // Which Services are ours: those with this label value, or without the label if empty.

	holdFor time.Duration // 0 means the constant of that name.
}

// Kubernetes watches an API server.
type Kubernetes struct{ cfg KubernetesConfig }

// NewKubernetes returns a source that watches an API server.
func NewKubernetes(cfg KubernetesConfig) *Kubernetes { return &Kubernetes{cfg: cfg} }

// Run feeds the queue until the context ends; its goroutines have ended when it returns. An API server that does not answer
// is a problem in the queue, not an error: what was read stays valid, and reading goes on when it answers again.
//
// It runs a reflector for each kind and no informer. An informer keeps every object for its listers, which would be a
// second copy of what translate holds, and hands events on through two more goroutines.
func (k *Kubernetes) Run(ctx context.Context, q *Queue) error {
	core, discovery := k.cfg.Client.CoreV1(), k.cfg.Client.DiscoveryV1()
	var running sync.WaitGroup
	running.Go(func() { mirror(ctx, k, core.Services(""), k.store(model.KindService, &corev1.Service{}, q)) })
	running.Go(func() {
		mirror(ctx, k, discovery.EndpointSlices(""), k.store(model.KindEndpointSlice, &discoveryv1.EndpointSlice{}, q))
	})
	running.Go(func() { mirror(ctx, k, core.Nodes(), k.store(model.KindNode, &corev1.Node{}, q)) })
	running.Wait()
	return nil
}

func (k *Kubernetes) store(kind model.ObjectKind, example runtime.Object, q *Queue) *store {
	return &store{
		kind: kind, example: example, reader: kube.Reader{ServiceProxyName: k.cfg.ServiceProxyName}, queue: q,
		holdFor: cmp.Or(k.cfg.holdFor, holdFor), known: map[model.ObjectKey]bool{},
	}
}

// selectors returns what kube-proxy selects: Services that are meant for this proxy and not headless, and slices of
// Services that are not headless, which their controller labels. An object that begins or ceases to match is
// watched as added or deleted.
func (k *Kubernetes) selectors(kind model.ObjectKind) (labels, fields string) {
	switch kind {
	case model.KindService:
		labels = "!" + kube.LabelServiceProxyName
		if k.cfg.ServiceProxyName != "" {
			labels = kube.LabelServiceProxyName + "=" + k.cfg.ServiceProxyName
		}
		return labels, "spec.clusterIP!=" + corev1.ClusterIPNone
	case model.KindEndpointSlice:
		return "!" + corev1.IsHeadlessService, ""
	default:
		return "", ""
	}
}

// lister is what the typed clients of all kinds have in common.
type lister[L runtime.Object] interface {
	List(context.Context, metav1.ListOptions) (L, error)
	Watch(context.Context, metav1.ListOptions) (watch.Interface, error)
}

// mirror keeps the store equal to what the API server has until the context ends. The list is streamed by the watch
// where the server can (WatchList, on by default in client-go since 1.35), which spares the server a copy of it all.
func mirror[L runtime.Object](ctx context.Context, k *Kubernetes, api lister[L], s *store) {
	defer s.close()
	labels, fields := k.selectors(s.kind)
	lw := kcache.ToListWatcherWithWatchListSemantics(&kcache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.LabelSelector, o.FieldSelector = labels, fields
			list, err := api.List(ctx, o)
			s.report(err)
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.LabelSelector, o.FieldSelector = labels, fields
			w, err := api.Watch(ctx, o)
			s.report(err)
			return w, err
		},
	}, k.cfg.Client)
	kcache.NewReflectorWithOptions(lw, s.example, s, kcache.ReflectorOptions{
		Name: string(s.kind),
		// At most 2 s, and as much of jitter. client-go's own limit is 30 s, made for a controller on every node. There
		// are a few replicas of this process, and every node waits for them.
		Backoff: &wait.Backoff{Duration: 200 * time.Millisecond, Factor: 2, Jitter: 1, Steps: 10, Cap: 2 * time.Second},
	}).RunWithContext(ctx)
}
