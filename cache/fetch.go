package cache

import (
	"context"
	"slices"

	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	gcpcache "github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

var _ gcpcache.ConfigFetcher = (*Cache)(nil)

// Fetch returns the present resources of one type: those that the request names or, of Listeners and Clusters, all if
// it names none. Before the first Publish the error has code Unavailable.
func (c *Cache) Fetch(_ context.Context, req *discoverypb.DiscoveryRequest) (gcpcache.Response, error) {
	node, zone := nodeOf(req.GetNode()), zoneOf(req.GetNode())
	names := make(map[string]struct{}, len(req.GetResourceNames()))
	for _, name := range req.GetResourceNames() {
		names[name] = struct{}{}
	}
	derived := c.deriveAll(req.GetTypeUrl(), names, nil)
	c.lockRendered(func(w wants) { c.wantView(w, c.viewOf(node, zone)) })
	defer c.unlockAndReport()
	if c.seq == 0 {
		return nil, status.Error(codes.Unavailable, "nothing is published yet: try again once the control plane has read the cluster's objects")
	}
	view := c.viewOf(node, zone)
	c.useView(view)
	defer c.leaveView(view)

	t := &subscription{stream: &Stream{cache: c, view: view}, typeURL: req.GetTypeUrl(), names: names, derived: derived}
	t.wildcard = len(t.names) == 0 && fullState(t.typeURL) || slices.Contains(req.GetResourceNames(), wildcard)
	return &sotwResponse{response: &response{resources: t.everything()}, request: req}, nil
}
