package parity

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/kubernetes/pkg/proxy"
	"k8s.io/kubernetes/pkg/proxy/apis/config"
	"k8s.io/kubernetes/pkg/proxy/nftables"
	proxyutil "k8s.io/kubernetes/pkg/proxy/util"

	"github.com/fairlead/fairlead/translate/model"
)

// kubeProxy runs kube-proxy's nftables proxier. The nft command that it finds on its PATH is a script, which says that all is
// well and keeps what it is told.
type kubeProxy struct{ transaction string }

// nftScript stands in for nft: the version, checks and lists are of no matter, the transaction is kept.
const nftScript = `#!/bin/sh
case "$*" in
--version) echo 'nftables v1.0.6 (Lester Gooch #5)' ;;
'-f -') cat >>"$NFT_TRANSACTION" ;;
esac
`

// newKubeProxy puts the script in place for as long as the test runs.
func newKubeProxy(t *testing.T) *kubeProxy {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "nft"), []byte(nftScript), 0o755); err != nil {
		t.Fatal(err)
	}
	k := &kubeProxy{transaction: filepath.Join(dir, "transaction")}
	t.Setenv("PATH", dir+string(filepath.ListSeparator)+os.Getenv("PATH"))
	t.Setenv("NFT_TRANSACTION", k.transaction)
	t.Setenv("KUBE_PROXY_NFTABLES_SKIP_KERNEL_VERSION_CHECK", "yes") // Its rules reach no kernel.
	return k
}

// podRange is where all pods' addresses are, as kube-proxy is told by --cluster-cidr.
var podRange = map[corev1.IPFamily]string{corev1.IPv4Protocol: "10.244.0.0/16", corev1.IPv6Protocol: "fd00:10:244::/48"}

// rules returns the rules that kube-proxy makes for a family on the cluster's node.
func (k *kubeProxy) rules(ctx context.Context, c *cluster, family corev1.IPFamily) (*ruleset, error) {
	if err := os.WriteFile(k.transaction, nil, 0o644); err != nil {
		return nil, err
	}
	bit := int32(14)
	conf := &config.KubeProxyConfiguration{NFTables: config.KubeProxyNFTablesConfiguration{MasqueradeBit: &bit}}
	pods := proxyutil.NewDetectLocalByCIDR(podRange[family])
	p, err := nftables.NewProxier(ctx, conf, family, pods, c.Node, net.IP(c.address(family).AsSlice()), nil, nil, false)
	if err != nil {
		return nil, fmt.Errorf("kube-proxy: %w", err)
	}
	for _, s := range c.proxied() {
		s = s.DeepCopy()
		s.Spec.HealthCheckNodePort = 0 // It would listen there; health asks for it in another way.
		p.OnServiceAdd(s)
	}
	for _, s := range c.withoutHeadless() {
		p.OnEndpointSliceAdd(s)
	}
	p.OnTopologyChange(c.labels())
	p.OnServiceSynced()
	p.OnEndpointSlicesSynced() // Writes the rules.
	text, err := os.ReadFile(k.transaction)
	if err != nil {
		return nil, err
	}
	return parseRules(string(text))
}

// health returns what kube-proxy answers to load balancers on the cluster's node.
func health(c *cluster, family corev1.IPFamily) map[model.ServiceKey]model.HealthCheck {
	services, slices := proxy.NewServiceChangeTracker(family, nil, nil), proxy.NewEndpointsChangeTracker(family, c.Node, nil, nil)
	for _, s := range c.proxied() {
		services.Update(nil, s)
	}
	for _, s := range c.withoutHeadless() {
		slices.EndpointSliceUpdate(s, false)
	}
	ports, endpoints := proxy.ServicePortMap{}, proxy.EndpointsMap{}
	ports.Update(services)
	endpoints.Update(slices)
	ready := endpoints.LocalReadyEndpoints()
	checks := map[model.ServiceKey]model.HealthCheck{}
	for name, port := range ports.HealthCheckNodePorts() {
		checks[keyOf(name)] = model.HealthCheck{Port: port, LocalEndpoints: ready[name]}
	}
	return checks
}

func keyOf(n types.NamespacedName) model.ServiceKey {
	return model.ServiceKey{Namespace: n.Namespace, Name: n.Name}
}
