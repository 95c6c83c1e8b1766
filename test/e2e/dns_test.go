package e2e

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/fairlead/fairlead/server/lab"
)

// dnsService is the address in every Pod's resolv.conf.
const dnsService = "10.96.0.10:53"

// resolver asks the cluster's DNS from a host over one transport protocol only.
func resolver(from *lab.Host, network string) *net.Resolver {
	return &net.Resolver{
		PreferGo: true,
		Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return from.DialContext(ctx, network, dnsService)
		},
	}
}

// TestDNS runs CoreDNS in two Pods behind the Service kube-dns. CoreDNS itself reaches the API server by the Service
// kubernetes, whose endpoint is no Pod. Pods then find Services by name, over UDP and TCP, and connect.
func TestDNS(t *testing.T) {
	c := theCluster
	manifest, err := os.ReadFile(filepath.Join("testdata", "coredns.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.kube.kubectl(string(manifest), "apply", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	s := deploy(t, "my-service", 3)
	pods := s.awaitPods(3)
	s.kubectl("expose", "deployment", s.name, "--name", "headless", "--cluster-ip=None", "--port", "8080")
	t.Cleanup(func() { s.kubectl("delete", "service", "headless") })

	const name = "my-service.default.svc.cluster.local"
	for _, client := range c.clients {
		for _, network := range []string{"udp", "tcp"} {
			t.Run(network+" from a pod on "+client.node.Name, func(t *testing.T) {
				s := s.in(t)
				r := resolver(client.host, network)
				s.resolves("address", []string{s.address.String()}, func(ctx context.Context) ([]string, error) {
					return addresses(r.LookupNetIP(ctx, "ip4", name+"."))
				})
				s.resolves("reverse", []string{name + "."}, func(ctx context.Context) ([]string, error) {
					return r.LookupAddr(ctx, s.address.String())
				})
				s.resolves("headless", hostAddresses(pods), func(ctx context.Context) ([]string, error) {
					return addresses(r.LookupNetIP(ctx, "ip4", "headless.default.svc.cluster.local."))
				})
				s.connects(client.host, r, name)
			})
		}
	}
}

// resolves waits until a lookup has exactly the wanted result.
func (s *service) resolves(what string, want []string, lookup func(context.Context) ([]string, error)) {
	s.t.Helper()
	s.eventually(func() error {
		ctx, cancel := context.WithTimeout(s.t.Context(), requestTimeout)
		defer cancel()
		got, err := lookup(ctx)
		if err != nil {
			return fmt.Errorf("%s lookup: %w", what, err)
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			return fmt.Errorf("%s lookup: %q, want %q", what, got, want)
		}
		return nil
	})
}

// connects makes a request by name, as a program in the Pod does, and looks at the source that the Service's Pod sees.
func (s *service) connects(from *lab.Host, r *net.Resolver, name string) {
	s.t.Helper()
	s.eventually(func() error {
		found, err := r.LookupNetIP(s.t.Context(), "ip4", name)
		if err != nil {
			return err
		}
		a, err := ask(s.t.Context(), from, netip.AddrPortFrom(found[0].Unmap(), 80))
		if err == nil && a.Client.Addr() != from.IPv4 {
			err = fmt.Errorf("pod %s saw %s, want the client's own address %s", a.Server, a.Client, from.IPv4)
		}
		return err
	})
}

func addresses(found []netip.Addr, err error) ([]string, error) {
	var s []string
	for _, a := range found {
		s = append(s, a.Unmap().String())
	}
	return s, err
}

func hostAddresses(pods []*pod) []string {
	var s []string
	for _, p := range pods {
		s = append(s, p.host.IPv4.String())
	}
	slices.Sort(s)
	return s
}
