// Command flannel is flannel's daemon with no more than the backends vxlan and host-gw, and with iptables: of flannel's own
// program one backend needs a C compiler (udp) and one the SDK of a cloud (tencentvpc). It does what flanneld does with
// --kube-subnet-mgr, in the same order and with the same packages; it never removes what it has made.
//
//	NODE_NAME=NAME flannel -kubeconfig FILE -config FILE -interface LINK [-masquerade] -subnet-file FILE
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"os/signal"
	"sync"
	"syscall"

	"github.com/flannel-io/flannel/pkg/backend"
	"github.com/flannel-io/flannel/pkg/ipmatch"
	"github.com/flannel-io/flannel/pkg/subnet"
	"github.com/flannel-io/flannel/pkg/subnet/kube"
	"github.com/flannel-io/flannel/pkg/trafficmngr/iptables"

	_ "github.com/flannel-io/flannel/pkg/backend/hostgw"
	_ "github.com/flannel-io/flannel/pkg/backend/vxlan"
)

const (
	annotationPrefix = "flannel.alpha.coreos.com"
	resyncSeconds    = 5 // How often flannel puts its rules back.
)

type options struct {
	kubeconfig, config, link, subnetFile string
	masquerade                           bool
}

func main() {
	var o options
	flag.StringVar(&o.kubeconfig, "kubeconfig", "", "file that says how to reach the API server")
	flag.StringVar(&o.config, "config", "/etc/kube-flannel/net-conf.json", "file of the network's configuration")
	flag.StringVar(&o.link, "interface", "", "link or address that leads to the other nodes")
	flag.StringVar(&o.subnetFile, "subnet-file", "/run/flannel/subnet.env", "file that is written once the network is there")
	flag.BoolVar(&o.masquerade, "masquerade", false, "hide pods from what is no pod")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, o); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, o options) error {
	manager, err := kube.NewSubnetManager(ctx, "", o.kubeconfig, annotationPrefix, o.config, true)
	if err != nil {
		return err
	}
	config, err := manager.GetNetworkConfig(ctx)
	if err != nil {
		return err
	}
	var running sync.WaitGroup
	network, err := register(ctx, &running, manager, config, o.link)
	if err != nil {
		return err
	}
	if err := addRules(ctx, config, network, o.masquerade); err != nil {
		return err
	}
	l := network.Lease()
	if err := manager.HandleSubnetFile(o.subnetFile, config, o.masquerade, l.Subnet, l.IPv6Subnet, network.MTU()); err != nil {
		return fmt.Errorf("%s: %w", o.subnetFile, err)
	}
	running.Add(1)
	go func() {
		defer running.Done()
		network.Run(ctx)
	}()
	err = manager.CompleteLease(ctx, l, &running)
	running.Wait()
	return err
}

// register makes the node's part of the network and tells the other nodes of it.
func register(ctx context.Context, running *sync.WaitGroup, manager subnet.Manager, config *subnet.Config, link string) (backend.Network, error) {
	families, err := ipmatch.GetIPFamily(config.EnableIPv4, config.EnableIPv6)
	if err != nil {
		return nil, err
	}
	external, err := ipmatch.LookupExtIface(link, "", "", families, ipmatch.PublicIPOpts{})
	if err != nil {
		return nil, err
	}
	b, err := backend.NewManager(ctx, manager, external).GetBackend(config.BackendType)
	if err != nil {
		return nil, err
	}
	return b.RegisterNetwork(ctx, running, config)
}

// addRules lets pods' packets through, and masquerades them. No rules of an earlier lease are looked for: a node's pod
// network does not change here.
func addRules(ctx context.Context, config *subnet.Config, network backend.Network, masquerade bool) error {
	rules := &iptables.IPTablesManager{}
	if err := rules.Init(ctx); err != nil {
		return err
	}
	if masquerade {
		l := network.Lease()
		err := rules.SetupAndEnsureMasqRules(ctx,
			config.Network, l.Subnet, config.Network, config.IPv6Network, l.IPv6Subnet, config.IPv6Network, l, resyncSeconds, false)
		if err != nil {
			return err
		}
	}
	rules.SetupAndEnsureForwardRules(ctx, config.Network, config.IPv6Network, resyncSeconds)
	return nil
}
