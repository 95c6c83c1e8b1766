package discovery

import (
	"context"
	"log/slog"
	"sync/atomic"

	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
)

// DaemonSet is the one that an agent's pod belongs to. A pod is not told why it ends. That its DaemonSet is no more is what
// tells an uninstallation from an update, a rollback or a restart, however it is done: with Helm, with kubectl or
// by a tool that follows a repository.
type DaemonSet struct {
	client  kubernetes.Interface
	name    types.NamespacedName
	log     *slog.Logger
	deleted atomic.Bool
}

// NewDaemonSet returns a DaemonSet of which nothing is known yet.
func NewDaemonSet(client kubernetes.Interface, name types.NamespacedName, log *slog.Logger) *DaemonSet {
	return &DaemonSet{client: client, name: name, log: log}
}

// Run watches the DaemonSet until ctx ends.
func (d *DaemonSet) Run(ctx context.Context) error {
	informer := informers.NewSharedInformerFactoryWithOptions(d.client, 0, informers.WithNamespace(d.name.Namespace),
		informers.WithTweakListOptions(func(o *metav1.ListOptions) {
			o.FieldSelector = fields.OneTermEqualSelector(metav1.ObjectNameField, d.name.Name).String()
		})).Apps().V1().DaemonSets().Informer()
	seen := false
	return follow(ctx, informer, d.log, func() {
		object, exists, err := informer.GetStore().GetByKey(d.name.String())
		if err != nil {
			return // Not with keys of this form.
		}
		// With foreground deletion the object stays until its pods are gone. One that was never there says nothing.
		deleted := seen && !exists || exists && object.(*appsv1.DaemonSet).DeletionTimestamp != nil
		seen = seen || exists
		if d.deleted.Swap(deleted) != deleted {
			d.log.Info("the agents' DaemonSet", "name", d.name.String(), "deleted", deleted)
		}
	})
}

// Deleted reports whether the DaemonSet was there and is no more, or is about to go. It is false while the API server has
// not said so. It may be called from any goroutine.
func (d *DaemonSet) Deleted() bool { return d.deleted.Load() }
