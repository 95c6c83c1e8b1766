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

// DaemonSet watches the DaemonSet of an agent's pod. A pod does not learn why it is stopped: only a deleted DaemonSet
// distinguishes an uninstallation from an update, a rollback or a restart, whether Helm, kubectl or a GitOps controller
// does it.
type DaemonSet struct {
	client  kubernetes.Interface
	name    types.NamespacedName
	log     *slog.Logger
	deleted atomic.Bool
}

// NewDaemonSet returns a DaemonSet that Run begins to watch.
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
			return // It cannot fail with a key of this form.
		}
		// With foreground deletion the object exists until its pods are deleted. One that never existed proves nothing.
		deleted := seen && !exists || exists && object.(*appsv1.DaemonSet).DeletionTimestamp != nil
		seen = seen || exists
		if d.deleted.Swap(deleted) != deleted {
			d.log.Info("the agents' DaemonSet", "name", d.name.String(), "deleted", deleted)
		}
	})
}

// Deleted reports whether the DaemonSet existed and was deleted, or is being deleted. It is false until the API server has
// reported that. It may be called from any goroutine.
func (d *DaemonSet) Deleted() bool { return d.deleted.Load() }
