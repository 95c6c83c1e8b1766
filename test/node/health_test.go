package node

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/fairlead/fairlead/server/lab"
	"github.com/fairlead/fairlead/server/lab/fleet"
)

// TestHealthCheck asks both nodes of a pair, as a load balancer does, whether they have endpoints; while one of them gets
// another Envoy, and while it has none.
func TestHealthCheck(t *testing.T) {
	c, p := theCluster, theCluster.pairs[0]
	const port = 31999
	s := &service{name: "checked", number: 1010, protocol: corev1.ProtocolTCP, external: corev1.ServiceExternalTrafficPolicyLocal,
		endpoints: []endpoint{{host: p.servers[0], node: p.nodes[0]}}}
	objects := s.objects()
	objects[0].(*corev1.Service).Spec.HealthCheckNodePort = port
	c.applyObjects(t, objects)
	c.settle(t)
	ask := func(ctx context.Context, n *lab.Node, family corev1.IPFamily) error {
		at := netip.AddrPortFrom(addressOf(n.Host, family), port)
		want := map[*lab.Node]string{p.nodes[0]: "200, weight 1", p.nodes[1]: "503, weight 0"}[n]
		if got := check(ctx, p.outside[0], at); got != want {
			return fmt.Errorf("%s says %s, want %s", at, got, want)
		}
		return nil
	}
	for _, family := range families {
		for _, n := range p.nodes {
			eventually(t, func(ctx context.Context) error { return ask(ctx, n, family) })
		}
	}

	n := p.nodes[0]
	old := c.fleet.Proxies(n.Name)[0]
	before := c.await(t, n, fleet.Ready)
	if _, err := c.fleet.StartProxy(n.Name); err != nil {
		t.Fatal(err)
	}
	replaced := false
	eventually(t, func(ctx context.Context) error {
		if err := ask(ctx, n, corev1.IPv4Protocol); err != nil {
			t.Fatal("while Envoy is replaced:", err)
		}
		if replaced {
			return nil
		}
		status, err := c.fleet.Status(ctx, n.Name)
		replaced = err == nil && status.Current != 0 && status.Current != before.Current
		return fmt.Errorf("generation %d is still the current one, %w", status.Current, err)
	})
	c.fleet.StopProxy(n.Name, old)
	last := c.fleet.Proxies(n.Name)[0]
	last.Kill()
	c.fleet.StopProxy(n.Name, last)
	eventually(t, func(ctx context.Context) error {
		if got := check(ctx, p.outside[0], netip.AddrPortFrom(n.IPv4, port)); got != "503, weight 1" {
			return fmt.Errorf("without an Envoy the node says %s", got)
		}
		return nil
	})
	if _, err := c.fleet.StartProxy(n.Name); err != nil {
		t.Fatal(err)
	}
	c.await(t, n, fleet.Ready)
	eventually(t, func(ctx context.Context) error { return ask(ctx, n, corev1.IPv4Protocol) })
}

// check returns a health check's answer in short.
func check(ctx context.Context, from *lab.Host, at netip.AddrPort) string {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+at.String()+"/", nil)
	if err != nil {
		return err.Error()
	}
	client := &http.Client{Transport: &http.Transport{DialContext: from.DialContext, DisableKeepAlives: true}}
	answer, err := client.Do(r)
	if err != nil {
		return err.Error()
	}
	defer answer.Body.Close()
	return fmt.Sprintf("%d, weight %s", answer.StatusCode, answer.Header.Get("X-Load-Balancing-Endpoint-Weight"))
}
