// Package discovery watches what an agent needs from the API server beside Services: the addresses of the control plane's
// replicas, and whether Fairlead is being uninstalled.
//
// In come the EndpointSlices of one Service and one DaemonSet, out go addresses and whether the DaemonSet was deleted. The
// agent needs neither to serve its node: while the API server does not answer, the last known state holds. The package never
// writes to the cluster.
package discovery

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	kcache "k8s.io/client-go/tools/cache"
)

// PortName is the name of the port, in the control plane's Service, that serves xDS.
const PortName = "xds"

// ReplicasConfig configures how an agent finds the replicas of the control plane.
type ReplicasConfig struct {
	Client  kubernetes.Interface
	Service types.NamespacedName // Its endpoints are the replicas; its cluster IP, if any, is not used.
	Path    string               // The file with the addresses for the next start.
	Log     *slog.Logger
}

// Replicas finds the replicas of the control plane.
type Replicas struct{ cfg ReplicasConfig }

// NewReplicas returns Replicas that Run begins to watch.
func NewReplicas(cfg ReplicasConfig) *Replicas { return &Replicas{cfg} }

// Remembered returns the addresses in the file, which an earlier process may have written; none without a file.
func (r *Replicas) Remembered() []string {
	content, err := os.ReadFile(r.cfg.Path)
	if err != nil {
		return nil
	}
	lines := strings.Fields(string(content))
	return slices.DeleteFunc(lines, func(line string) bool {
		_, err := netip.ParseAddrPort(line)
		return err != nil // Half written before a power cut.
	})
}

// Run calls set with the addresses of all ready replicas, as host:port, as soon as they are known and whenever they change, until
// ctx ends. While none is ready, the last addresses stay: the next replicas most likely have them.
func (r *Replicas) Run(ctx context.Context, set func([]string)) error {
	informer := informers.NewSharedInformerFactoryWithOptions(r.cfg.Client, 0, informers.WithNamespace(r.cfg.Service.Namespace),
		informers.WithTweakListOptions(func(o *metav1.ListOptions) {
			o.LabelSelector = discoveryv1.LabelServiceName + "=" + r.cfg.Service.Name
		})).Discovery().V1().EndpointSlices().Informer()
	return follow(ctx, informer, r.cfg.Log, func() {
		addresses := addressesOf(informer.GetStore().List())
		if len(addresses) == 0 {
			return
		}
		set(addresses)
		if slices.Equal(addresses, r.Remembered()) {
			return
		}
		r.cfg.Log.Info("replicas of the control plane", "addresses", addresses)
		if err := r.remember(addresses); err != nil {
			r.cfg.Log.Error("cannot write the replicas' addresses: after a restart without an API server the agent would not find them", "error", err)
		}
	})
}

// remember writes the addresses to the file.
func (r *Replicas) remember(addresses []string) error {
	temporary := r.cfg.Path + ".tmp"
	if err := os.WriteFile(temporary, []byte(strings.Join(addresses, "\n")+"\n"), 0o600); err != nil {
		return fmt.Errorf("remember addresses: %w", err)
	}
	return os.Rename(temporary, r.cfg.Path)
}

// addressesOf returns the addresses of the ready endpoints, sorted.
func addressesOf(slicesOfService []any) []string {
	var all []string
	for _, object := range slicesOfService {
		slice := object.(*discoveryv1.EndpointSlice)
		i := slices.IndexFunc(slice.Ports, func(p discoveryv1.EndpointPort) bool {
			return p.Name != nil && *p.Name == PortName && p.Port != nil
		})
		if i < 0 {
			continue
		}
		for _, e := range slice.Endpoints {
			if len(e.Addresses) == 0 || e.Conditions.Ready != nil && !*e.Conditions.Ready {
				continue
			}
			if a, err := netip.ParseAddr(e.Addresses[0]); err == nil {
				all = append(all, netip.AddrPortFrom(a, uint16(*slice.Ports[i].Port)).String())
			}
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// follow runs an informer, and calls changed once it has synced and after every change, until ctx ends.
func follow(ctx context.Context, informer kcache.SharedIndexInformer, log *slog.Logger, changed func()) error {
	wake := make(chan struct{}, 1)
	tell := func() {
		select {
		case wake <- struct{}{}:
		default: // The goroutine below is already due to run.
		}
	}
	_, err := informer.AddEventHandler(kcache.ResourceEventHandlerFuncs{
		AddFunc: func(any) { tell() }, UpdateFunc: func(any, any) { tell() }, DeleteFunc: func(any) { tell() },
	})
	if err != nil {
		return err
	}
	err = informer.SetWatchErrorHandlerWithContext(func(_ context.Context, _ *kcache.Reflector, err error) {
		log.Warn("cannot watch the API server", "error", err)
	})
	if err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() { defer close(ended); informer.RunWithContext(ctx) }()
	defer func() { <-ended }()
	if !kcache.WaitForCacheSync(ctx.Done(), informer.HasSynced) {
		return nil
	}
	tell()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-wake:
			changed()
		}
	}
}
