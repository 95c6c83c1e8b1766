package realnode

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// finalizer keeps a Service until its load balancer is gone, as Kubernetes' own controller for clouds does it.
const finalizer = "service.kubernetes.io/load-balancer-cleanup"

// loadBalancers is a controller. Only run uses it.
type loadBalancers struct {
	cluster *cluster
	next    netip.Addr
	routes  map[netip.Addr]netip.Addr // The node that an address is led to.
}

// run reports errors and goes on.
func (b *loadBalancers) run(ctx context.Context, report func(error)) {
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		services, err := b.cluster.kube.client.CoreV1().Services("").List(ctx, metav1.ListOptions{})
		if err != nil {
			if ctx.Err() == nil {
				report(fmt.Errorf("load balancers: %w", err))
			}
			continue
		}
		for _, s := range services.Items {
			if err := b.reconcile(ctx, &s); err != nil && ctx.Err() == nil {
				report(fmt.Errorf("load balancer of %s/%s: %w", s.Namespace, s.Name, err))
			}
		}
	}
}

func (b *loadBalancers) reconcile(ctx context.Context, s *corev1.Service) error {
	wanted := s.Spec.Type == corev1.ServiceTypeLoadBalancer && s.Spec.LoadBalancerClass == nil && s.DeletionTimestamp == nil
	has := len(s.Status.LoadBalancer.Ingress) > 0
	marked := slices.Contains(s.Finalizers, finalizer)
	switch {
	case wanted && !has:
		b.next = b.next.Next()
		if !balancers.Contains(b.next) {
			b.next = balancers.Addr().Next()
		}
		ingress := []map[string]string{{"ip": b.next.String()}}
		if err := b.patch(ctx, s, map[string]any{"metadata": map[string]any{"finalizers": append(s.Finalizers, finalizer)}}); err != nil {
			return err
		}
		return b.patch(ctx, s, map[string]any{"status": map[string]any{"loadBalancer": map[string]any{"ingress": ingress}}}, "status")
	case wanted:
		return b.lead(ctx, s)
	case s.Spec.Type == corev1.ServiceTypeLoadBalancer && s.Spec.LoadBalancerClass != nil:
		return nil
	case has || marked:
		if err := b.patch(ctx, s, map[string]any{"status": map[string]any{"loadBalancer": nil}}, "status"); err != nil {
			return err
		}
		rest := slices.DeleteFunc(slices.Clone(s.Finalizers), func(f string) bool { return f == finalizer })
		return b.patch(ctx, s, map[string]any{"metadata": map[string]any{"finalizers": rest}})
	}
	return nil
}

func (b *loadBalancers) patch(ctx context.Context, s *corev1.Service, change map[string]any, subresource ...string) error {
	text, err := json.Marshal(change)
	if err != nil {
		return err
	}
	_, err = b.cluster.kube.client.CoreV1().Services(s.Namespace).Patch(ctx, s.Name, types.MergePatchType, text, metav1.PatchOptions{}, subresource...)
	return err
}

// lead sends the Service's address to the first node with ready endpoints, and to the first of all without any, from the
// client's own address.
func (b *loadBalancers) lead(ctx context.Context, s *corev1.Service) error {
	address, err := netip.ParseAddr(s.Status.LoadBalancer.Ingress[0].IP)
	if err != nil {
		return err
	}
	nodes, err := b.cluster.ready(ctx, s.Namespace, s.Name)
	if err != nil {
		return err
	}
	to := b.cluster.nodes[0].IPv4
	if len(nodes) > 0 {
		to = nodes[0]
	}
	if slices.Contains(nodes, b.routes[address]) || b.routes[address] == to {
		return nil
	}
	err = b.cluster.kube.host.Do(func() error {
		out, err := exec.Command("ip", "route", "replace", address.String(), "via", to.String(), "src", client).CombinedOutput()
		if err != nil {
			return fmt.Errorf("ip route: %w: %s", err, out)
		}
		return nil
	})
	if err == nil {
		b.routes[address] = to
	}
	return err
}
