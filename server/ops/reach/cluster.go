package reach

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"
)

// adminPort is the name of the admin port in a replica's pod.
const adminPort = "admin"

// forwardTimeout is how long the API server may take to reach a pod: those of other nodes must not wait for one that is gone.
const forwardTimeout = 5 * time.Second

// ClusterConfig says which cluster, and where the control plane is in it.
type ClusterConfig struct {
	Kubeconfig string               // The file; empty: as kubectl finds it.
	Context    string               // The context in it; empty: the current one.
	Namespace  string               // Of objects that are named without one; empty: the context's.
	Service    types.NamespacedName // The Service whose endpoints are the replicas.
}

// clientConfig returns what kubectl would use.
func (c ClusterConfig) clientConfig() clientcmd.ClientConfig {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = c.Kubeconfig
	return clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{
		CurrentContext: c.Context, Context: api.Context{Namespace: c.Namespace},
	})
}

// Contexts returns the names of the contexts in the kubeconfig, in order.
func (c ClusterConfig) Contexts() ([]string, error) {
	raw, err := c.clientConfig().RawConfig()
	if err != nil {
		return nil, err
	}
	var names []string
	for name := range raw.Contexts {
		names = append(names, name)
	}
	slices.Sort(names)
	return names, nil
}

// Cluster is a control plane in a cluster, whose replicas are reached through the API server, as kubectl port-forward does.
type Cluster struct {
	client    kubernetes.Interface
	rest      *rest.Config
	namespace string
	service   types.NamespacedName
	forwards  map[types.UID]*forward // By pod.
}

// NewCluster reads the kubeconfig, and connects to nothing yet.
func NewCluster(cfg ClusterConfig) (*Cluster, error) {
	loader := cfg.clientConfig()
	config, err := loader.ClientConfig()
	if clientcmd.IsEmptyConfig(err) {
		err = errors.New("there is no kubeconfig")
	}
	if err != nil {
		return nil, fmt.Errorf("%w: give --kubeconfig and --context as to kubectl, or a control plane's address by --admin", err)
	}
	namespace, _, err := loader.Namespace()
	if err != nil {
		return nil, fmt.Errorf("kubeconfig: %w", err)
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("make a client of %s: %w", config.Host, err)
	}
	return &Cluster{client: client, rest: config, namespace: namespace, service: cfg.Service, forwards: map[types.UID]*forward{}}, nil
}

// Namespace implements Replicas.
func (c *Cluster) Namespace() string { return c.namespace }

// Client returns a client of the API server.
func (c *Cluster) Client() kubernetes.Interface { return c.client }

// List implements Replicas. It looks for the replicas each time: they change while somebody waits for a rollout. It keeps the
// ports that it has forwarded, and forwards again to a pod that was lost.
func (c *Cluster) List(ctx context.Context) ([]Replica, error) {
	found, err := c.client.DiscoveryV1().EndpointSlices(c.service.Namespace).List(ctx, metav1.ListOptions{
		LabelSelector: discoveryv1.LabelServiceName + "=" + c.service.Name,
	})
	if err != nil {
		return nil, fmt.Errorf("find the control plane's replicas, by the EndpointSlices of Service %s: %w", c.service, err)
	}
	pods := podsOf(found.Items)
	if len(pods) == 0 {
		return nil, fmt.Errorf("no replica of the control plane: %s has no endpoints: is the control plane installed there, and does it run? "+
			"(--server-endpoints says where it is; kubectl -n %s get pods shows it)", c.service, c.service.Namespace)
	}
	all := make([]Replica, len(pods))
	for i, p := range pods {
		all[i].Name = p.Name
		all[i].Address, all[i].Err = c.forward(ctx, p)
	}
	c.drop(pods)
	return all, nil
}

// Versions implements Replicas.
func (c *Cluster) Versions(ctx context.Context, service string) (map[string]string, error) {
	namespace, name, _ := strings.Cut(service, "/")
	object, err := c.client.CoreV1().Services(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	found, err := c.client.DiscoveryV1().EndpointSlices(namespace).List(ctx, metav1.ListOptions{
		LabelSelector: discoveryv1.LabelServiceName + "=" + name + ",!" + corev1.IsHeadlessService,
	})
	if err != nil {
		return nil, err
	}
	versions := map[string]string{"Service " + service: object.ResourceVersion}
	for _, s := range found.Items {
		if s.AddressType != discoveryv1.AddressTypeFQDN {
			versions["EndpointSlice "+namespace+"/"+s.Name] = s.ResourceVersion
		}
	}
	return versions, nil
}

// Close implements Replicas.
func (c *Cluster) Close() { c.drop(nil) }

// podsOf returns the pods of endpoints, by name: the ready ones and those that are not, but not those that end. A pod of two
// families is in two slices.
func podsOf(all []discoveryv1.EndpointSlice) []corev1.ObjectReference {
	var pods []corev1.ObjectReference
	for _, s := range all {
		for _, e := range s.Endpoints {
			ends := e.Conditions.Terminating != nil && *e.Conditions.Terminating
			if e.TargetRef != nil && e.TargetRef.Kind == "Pod" && !ends {
				pods = append(pods, *e.TargetRef)
			}
		}
	}
	slices.SortFunc(pods, func(a, b corev1.ObjectReference) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), cmp.Compare(a.UID, b.UID))
	})
	return slices.CompactFunc(pods, func(a, b corev1.ObjectReference) bool { return a.UID == b.UID })
}

// forward returns the address at which a pod's admin port is reached.
func (c *Cluster) forward(ctx context.Context, pod corev1.ObjectReference) (string, error) {
	if f := c.forwards[pod.UID]; f != nil && f.alive() {
		return f.address, nil
	}
	object, err := c.client.CoreV1().Pods(c.service.Namespace).Get(ctx, pod.Name, metav1.GetOptions{})
	if err != nil {
		return "", err
	}
	port, err := portOf(object)
	if err != nil {
		return "", err
	}
	u := c.client.CoreV1().RESTClient().Post().Resource("pods").Namespace(c.service.Namespace).Name(pod.Name).SubResource("portforward").URL()
	ctx, cancel := context.WithTimeoutCause(ctx, forwardTimeout, errors.New("the API server does not reach the pod's node in time"))
	defer cancel()
	f, err := startForward(ctx, c.rest, u, port)
	if err != nil {
		return "", fmt.Errorf("forward port %d of the pod through the API server: %w", port, err)
	}
	c.forwards[pod.UID] = f
	return f.address, nil
}

// portOf returns the admin port of a replica's pod.
func portOf(pod *corev1.Pod) (int32, error) {
	for _, container := range pod.Spec.Containers {
		for _, p := range container.Ports {
			if p.Name == adminPort {
				return p.ContainerPort, nil
			}
		}
	}
	return 0, errors.New("no container of the pod has a port named " + adminPort + ": is it Fairlead's control plane?")
}

// drop ends the forwards to all but the given pods.
func (c *Cluster) drop(but []corev1.ObjectReference) {
	for uid, f := range c.forwards {
		if !slices.ContainsFunc(but, func(p corev1.ObjectReference) bool { return p.UID == uid }) {
			f.stop()
			delete(c.forwards, uid)
		}
	}
}
