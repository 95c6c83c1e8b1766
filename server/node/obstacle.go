package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"

	"github.com/fairlead/fairlead/server/node/dataplane"
)

// obstacle is what another program on the node does to the cluster IPs that Fairlead forwards. The reconciler owns it.
type obstacle struct {
	looked  bool         // kube-proxy drops some: look again after each commit.
	dropped []netip.Addr // Cluster IPs whose packets kube-proxy drops.
}

// look lists the cluster IPs that kube-proxy drops, and logs when they change.
func (o *obstacle) look(ctx context.Context, table *dataplane.Table, log *slog.Logger) {
	dropped, err := table.DroppedByKubeProxy(ctx)
	if err != nil {
		log.Error("cannot check whether kube-proxy drops cluster IPs that Fairlead forwards", "error", err)
		return
	}
	if slices.Equal(dropped, o.dropped) {
		return
	}
	o.dropped, o.looked = dropped, len(dropped) > 0
	if err := o.error(); err != nil {
		log.Error("clients cannot reach Services on this node", "error", err)
	} else {
		log.Info("kube-proxy no longer drops cluster IPs that Fairlead forwards")
	}
}

// error returns what kube-proxy drops, and what to do about it; nil if it drops nothing.
func (o *obstacle) error() error {
	if len(o.dropped) == 0 {
		return nil
	}
	return errors.New(fmt.Sprint("kube-proxy in nftables mode drops ", len(o.dropped), " of the cluster IPs that Fairlead forwards, such as ", o.dropped[0],
		", because it does not know them: run it in iptables mode, or install Fairlead in its place (mode: replace) and run kube-proxy --cleanup on the node"))
}
