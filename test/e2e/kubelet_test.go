package e2e

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	applycorev1 "k8s.io/client-go/applyconfigurations/core/v1"
	"k8s.io/client-go/informers"
	kcache "k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"

	"github.com/fairlead/fairlead/server/lab"
)

// kubelets stands in for the scheduler and for every node's kubelet: it gives a Pod a node, runs it in a network
// namespace of that node, writes its status, and ends it as gracefully as its users deserve. From there on the real
// controllers do their work.
type kubelets struct {
	cluster *cluster

	queue workqueue.TypedRateLimitingInterface[string] // Keys of Pods that changed.
	store kcache.Store                                 // Of the Pods' informer.

	mu   sync.Mutex // Guards the following.
	pods map[string]*pod
	next int // The node that the next Pod without one gets.
	made int // Pods so far.
}

// workers is how many Pods are brought up at once.
const workers = 4

// startKubelets registers the nodes and serves Pods until ctx ends.
func (c *cluster) startKubelets(ctx context.Context) (*kubelets, error) {
	k := &kubelets{
		cluster: c,
		queue:   workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[string](10*time.Millisecond, time.Second)),
		pods:    map[string]*pod{},
	}
	for _, n := range c.nodes {
		if err := k.register(ctx, n); err != nil {
			return nil, err
		}
	}
	informer := informers.NewSharedInformerFactory(c.kube.Client, 0).Core().V1().Pods().Informer()
	k.store = informer.GetStore()
	enqueue := func(obj any) {
		key, err := kcache.DeletionHandlingMetaNamespaceKeyFunc(obj)
		if err == nil && !strings.HasPrefix(key, containersNamespace+"/") { // Those are played by containers.
			k.queue.Add(key)
		}
	}
	_, err := informer.AddEventHandler(kcache.ResourceEventHandlerFuncs{
		AddFunc:    enqueue,
		UpdateFunc: func(_, now any) { enqueue(now) },
		DeleteFunc: enqueue,
	})
	if err != nil {
		return nil, err
	}
	go informer.RunWithContext(ctx)
	context.AfterFunc(ctx, k.queue.ShutDown)
	for range workers {
		go k.work(ctx)
	}
	return k, nil
}

// register creates the Node object as a kubelet would.
func (k *kubelets) register(ctx context.Context, n *lab.Node) error {
	node := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: n.Name, Labels: map[string]string{
			corev1.LabelHostname: n.Name, corev1.LabelTopologyZone: "zone-" + n.Name, corev1.LabelOSStable: "linux",
		}},
		Spec: corev1.NodeSpec{PodCIDR: n.PodCIDR4.String(), PodCIDRs: []string{n.PodCIDR4.String(), n.PodCIDR6.String()}},
	}
	client := k.cluster.kube.Client.CoreV1().Nodes()
	created, err := client.Create(ctx, node, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("node %s: %w", n.Name, err)
	}
	created.Status.Addresses = []corev1.NodeAddress{
		{Type: corev1.NodeInternalIP, Address: n.IPv4.String()},
		{Type: corev1.NodeInternalIP, Address: n.IPv6.String()},
		{Type: corev1.NodeHostName, Address: n.Name},
	}
	created.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "KubeletReady"}}
	_, err = client.UpdateStatus(ctx, created, metav1.UpdateOptions{})
	return err
}

func (k *kubelets) work(ctx context.Context) {
	for {
		key, shutdown := k.queue.Get()
		if shutdown {
			return
		}
		if err := k.sync(ctx, key); err != nil && ctx.Err() == nil {
			// The API server may just be restarting; the queue tries again.
			slog.Warn("kubelet: pod not synced", "pod", key, "error", err)
			k.queue.AddRateLimited(key)
		} else {
			k.queue.Forget(key)
		}
		k.queue.Done(key)
	}
}

// sync brings one Pod's namespace and server in line with its object.
func (k *kubelets) sync(ctx context.Context, key string) error {
	obj, exists, err := k.store.GetByKey(key)
	if err != nil {
		return err
	}
	object, _ := obj.(*corev1.Pod)
	running := k.pod(key)
	if running != nil && (!exists || object.UID != running.uid) {
		k.forget(running)
		if err := running.end(); err != nil {
			return err
		}
		running = nil
	}
	switch {
	case !exists:
		return nil
	case object.DeletionTimestamp != nil:
		k.terminate(ctx, object, running)
		return nil
	case object.Spec.NodeName == "":
		return k.bind(ctx, object)
	case running == nil:
		return k.start(ctx, object)
	default:
		return nil
	}
}

// bind gives the nodes their Pods in turn.
func (k *kubelets) bind(ctx context.Context, object *corev1.Pod) error {
	err := k.cluster.kube.Client.CoreV1().Pods(object.Namespace).Bind(ctx, &corev1.Binding{
		ObjectMeta: metav1.ObjectMeta{Namespace: object.Namespace, Name: object.Name, UID: object.UID},
		Target:     corev1.ObjectReference{Kind: "Node", Name: k.turn()},
	}, metav1.CreateOptions{})
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
		return nil // Bound or deleted since: an event says so.
	}
	return err
}

// turn returns the name of the next node.
func (k *kubelets) turn() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.next++
	return k.cluster.nodes[k.next%len(k.cluster.nodes)].Name
}

// start makes the Pod's namespace and server, and says that it is ready once it is.
func (k *kubelets) start(ctx context.Context, object *corev1.Pod) error {
	i := slices.IndexFunc(k.cluster.nodes, func(n *lab.Node) bool { return n.Name == object.Spec.NodeName })
	if i < 0 {
		return fmt.Errorf("no node %s", object.Spec.NodeName)
	}
	node := k.cluster.nodes[i]
	p, err := k.cluster.startPod(ctx, node, k.number(), object)
	if err != nil {
		return err
	}
	ready := metav1.Now()
	condition := func(t corev1.PodConditionType) *applycorev1.PodConditionApplyConfiguration {
		return applycorev1.PodCondition().WithType(t).WithStatus(corev1.ConditionTrue).WithLastTransitionTime(ready)
	}
	status := applycorev1.PodStatus().
		WithPhase(corev1.PodRunning).
		WithHostIP(node.IPv4.String()).
		WithPodIP(p.host.IPv4.String()).
		WithPodIPs(podIP(p.host.IPv4), podIP(p.host.IPv6)).
		WithConditions(condition(corev1.PodScheduled), condition(corev1.PodInitialized), condition(corev1.ContainersReady), condition(corev1.PodReady))
	_, err = k.cluster.kube.Client.CoreV1().Pods(object.Namespace).ApplyStatus(ctx,
		applycorev1.Pod(object.Name, object.Namespace).WithUID(object.UID).WithStatus(status),
		metav1.ApplyOptions{FieldManager: "kubelet", Force: true})
	if err != nil {
		return errors.Join(err, p.end())
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.pods[p.key] = p
	return nil
}

// number returns what ends the next Pod's addresses. It comes back late: a network plugin does not give an address away
// while neighbours still remember who had it.
func (k *kubelets) number() int {
	const first, count = 10, 241 // As in lab.
	k.mu.Lock()
	defer k.mu.Unlock()
	k.made++
	return first + k.made%count
}

func podIP(a netip.Addr) *applycorev1.PodIPApplyConfiguration {
	return applycorev1.PodIP().WithIP(a.String())
}

// terminate lets a deleted Pod serve until nobody asks it any more, as a preStop hook does, and then removes it. Its
// grace period bounds that.
func (k *kubelets) terminate(ctx context.Context, object *corev1.Pod, running *pod) {
	if running != nil && !running.terminating.CompareAndSwap(false, true) {
		return
	}
	go func() {
		if running != nil {
			grace := time.Duration(*object.DeletionGracePeriodSeconds) * time.Second
			running.drained(ctx, grace)
		}
		if err := k.remove(ctx, object.Namespace, object.Name, object.UID); err != nil && ctx.Err() == nil {
			slog.Error("kubelet: pod not removed", "pod", object.Name, "error", err)
		}
	}()
}

// remove deletes the Pod's object for good; the event of that ends its server.
func (k *kubelets) remove(ctx context.Context, namespace, name string, uid types.UID) error {
	return eventually(ctx, func() error {
		now := int64(0)
		err := k.cluster.kube.Client.CoreV1().Pods(namespace).Delete(ctx, name, metav1.DeleteOptions{
			GracePeriodSeconds: &now,
			Preconditions:      &metav1.Preconditions{UID: &uid},
		})
		if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
			return nil
		}
		return err
	})
}

// pod returns the running Pod of that namespace/name, or nil.
func (k *kubelets) pod(key string) *pod {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.pods[key]
}

func (k *kubelets) forget(p *pod) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.pods, p.key)
}
