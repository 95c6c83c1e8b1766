package e2e

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/fairlead/fairlead/server/lab"
)

// containersNamespace is where Pods are run by containers, not by kubelets.
const containersNamespace = "fairlead"

// containers stands in for the scheduler and the kubelets of further nodes, for the Pods of containersNamespace. It runs
// what their specs say, on the node that they insist on or on each in turn.
type containers struct {
	cluster *cluster
	nodes   []*lab.Node
	envoy   string // The binary.

	pods map[types.UID]*containerPod // Of run alone.
	next int                         // The node that the next Pod without one gets; of run alone.

	ended   sync.WaitGroup
	mu      sync.Mutex // Guards the following.
	failure []error
	alive   int
}

// run plays until ctx ends, and returns when the last process has ended.
func (k *containers) run(ctx context.Context) {
	defer k.ended.Wait()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		if err := k.look(ctx); err != nil && ctx.Err() == nil {
			k.note(err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// look brings what runs in line with the Pods.
func (k *containers) look(ctx context.Context) error {
	list, err := k.cluster.kube.Client.CoreV1().Pods(containersNamespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	there := map[types.UID]bool{}
	for _, object := range list.Items {
		there[object.UID] = true
		p := k.pods[object.UID]
		switch {
		case object.DeletionTimestamp != nil && p == nil:
			err = errors.Join(err, k.cluster.kubelets.remove(ctx, object.Namespace, object.Name, object.UID))
		case object.DeletionTimestamp != nil:
			p.delete(time.Duration(*object.DeletionGracePeriodSeconds) * time.Second)
		case object.Spec.NodeName == "":
			err = errors.Join(err, k.bind(ctx, &object))
		case p == nil:
			err = errors.Join(err, k.start(ctx, &object))
		}
	}
	for uid, p := range k.pods {
		if !there[uid] {
			p.delete(0)
			delete(k.pods, uid)
		}
	}
	return err
}

// delete tells the Pod, once, that it is to end.
func (p *containerPod) delete(grace time.Duration) {
	select {
	case p.deleted <- grace:
	default:
	}
}

// bind is the scheduler. A Pod of a DaemonSet names its node in its affinity.
func (k *containers) bind(ctx context.Context, object *corev1.Pod) error {
	node := k.nodes[k.next%len(k.nodes)].Name
	if a := object.Spec.Affinity; a != nil && a.NodeAffinity != nil && a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution != nil {
		node = a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms[0].MatchFields[0].Values[0]
	} else {
		k.next++
	}
	return k.cluster.kube.Client.CoreV1().Pods(object.Namespace).Bind(ctx, &corev1.Binding{
		ObjectMeta: metav1.ObjectMeta{Namespace: object.Namespace, Name: object.Name, UID: object.UID},
		Target:     corev1.ObjectReference{Kind: "Node", Name: node},
	}, metav1.CreateOptions{})
}

// start starts a Pod's life.
func (k *containers) start(ctx context.Context, object *corev1.Pod) error {
	for _, n := range k.nodes {
		if n.Name != object.Spec.NodeName {
			continue
		}
		p := &containerPod{kubelet: k, object: object.DeepCopy(), node: n, dir: filepath.Join(k.cluster.dir, "pods", object.Name), deleted: make(chan time.Duration, 1)}
		k.pods[object.UID] = p
		k.count(1)
		k.ended.Go(func() {
			defer k.count(-1)
			if err := p.run(ctx); err != nil && ctx.Err() == nil {
				k.note(fmt.Errorf("pod %s: %w", object.Name, err))
			}
		})
		return nil
	}
	return fmt.Errorf("pod %s: no node %q", object.Name, object.Spec.NodeName)
}

// hostPath is where a folder of a node is on this machine.
func (k *containers) hostPath(n *lab.Node, path string) string {
	return filepath.Join(k.cluster.dir, "nodes", n.Name, path)
}

// note remembers what should not have happened.
func (k *containers) note(err error) {
	slog.Error("containers", "error", err)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.failure = append(k.failure, err)
}

// failed returns all that should not have happened.
func (k *containers) failed() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return errors.Join(k.failure...)
}

func (k *containers) count(change int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.alive += change
}

// running returns how many Pods have not ended.
func (k *containers) running() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.alive
}
