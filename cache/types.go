package cache

import (
	"slices"

	gcpresource "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
)

// anyPrefix is what precedes a message's name in the type URL of an Any.
const anyPrefix = gcpresource.APITypePrefix

// The type URLs of Fairlead's own resources; Envoy's are in go-control-plane's package resource.
const (
	NodeType     = anyPrefix + "fairlead.v1.Node"
	FrontendType = anyPrefix + "fairlead.v1.Frontend"
)

// sendOrder is the order in which additions and changes go out on a stream: what is referred to before what refers to
// it. A Listener or a RouteConfiguration names clusters, a cluster warms until its assignment arrives, and a
// Frontend directs traffic to all of them. Other types, which have no resources, come last.
var sendOrder = []string{
	NodeType,
	gcpresource.ClusterType,
	gcpresource.EndpointType,
	gcpresource.ListenerType,
	gcpresource.RouteType,
	FrontendType,
}

// removeOrder is the order of removals, which follow all additions: what refers before what is referred to.
var removeOrder = []string{
	FrontendType,
	gcpresource.ListenerType,
	gcpresource.RouteType,
	gcpresource.ClusterType,
	gcpresource.EndpointType,
	NodeType,
}

// rank returns the place of a type in an order.
func rank(order []string, typeURL string) int {
	if i := slices.Index(order, typeURL); i >= 0 {
		return i
	}
	return len(order)
}

// fullState reports whether a SotW response of the type holds every resource subscribed to, so that absence means
// removal. The xDS protocol says so for Listeners and Clusters; responses of other types hold only what changed.
func fullState(typeURL string) bool {
	return typeURL == gcpresource.ClusterType || typeURL == gcpresource.ListenerType
}
