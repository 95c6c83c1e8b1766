package envoy

import (
	"net/netip"
	"strings"

	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerpb "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	setfilterstatepb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/set_filter_state/v3"
	originalsrcpb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/original_src/v3"
	setfilterstatenetpb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/set_filter_state/v3"
	tcpproxypb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	gcpresource "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/fairlead/fairlead/translate/frontendpb"
)

// Addresses inside the proxy's network namespace. They are the same in every Envoy instance: nothing outside sees them.
var (
	// NodePortAlias4 and NodePortAlias6 stand for the node's own addresses: a node cannot route its own address to
	// another namespace, so a NodePort's destination is rewritten to them on the way in.
	NodePortAlias4 = netip.MustParseAddr("169.254.64.1")
	NodePortAlias6 = netip.MustParseAddr("fd00:fa1::1")
	// aliases4 and aliases6 hold the aliases of other frontends' addresses that are the node's own, such as a load
	// balancer's that the node itself has.
	aliases4 = netip.MustParsePrefix("169.254.67.0/24")
	aliases6 = netip.MustParsePrefix("fd00:fa1:3::/120")
)

// Timeouts and sizes of the data path.
const (
	// bufferLimit bounds what Envoy holds for one direction of one connection. It is a soft limit.
	bufferLimit = 128 << 10
	// connectAttempts is how many endpoints are tried before a client's connection is closed.
	connectAttempts = 3
)

// ListenerPort returns the port on which Envoy accepts the TCP connections of a class.
func ListenerPort(class frontendpb.Class) uint16 { return 15000 + uint16(class) }

// Alias stands for an address of the node inside the proxy's namespace.
type Alias struct{ Address, Alias netip.Addr }

// MaxAliases is how many addresses of a node can have an alias.
const MaxAliases = 254

// NewAlias returns the alias with a number, from 1 to MaxAliases, for an address.
func NewAlias(address netip.Addr, number int) Alias {
	prefix := aliases4
	if address.Is6() {
		prefix = aliases6
	}
	raw := prefix.Addr().AsSlice()
	raw[len(raw)-1] = byte(number)
	alias, _ := netip.AddrFromSlice(raw)
	return Alias{address, alias}
}

// CatchAll returns the listeners, one of each family, that accept every TCP connection of a class. The cluster is found by the
// address that the client dialled, so that a new Service needs no new listener: ten thousand clusters load in seconds,
// ten thousand listeners in minutes.
func CatchAll(class frontendpb.Class, aliases []Alias) []*listenerpb.Listener {
	prefix := ""
	if class == frontendpb.Class_EXTERNAL {
		prefix = externalLocal
	}
	var out []*listenerpb.Listener
	for _, family := range []struct {
		suffix, any, nodePort string
		alias                 netip.Addr
	}{
		{"4", "0.0.0.0", "*", NodePortAlias4},
		{"6", "::", "[*]", NodePortAlias6},
	} {
		l := &listenerpb.Listener{
			Name:        "catch-all-" + class.Label() + "-" + family.suffix,
			StatPrefix:  class.Label(),
			Address:     address(family.any, ListenerPort(class), corepb.SocketAddress_TCP),
			Transparent: wrapperspb.Bool(true),
			// A listener bound to any address reads the dialled address of each connection from its socket.
			FilterChains:                  []*listenerpb.FilterChain{aliasChain("node-port", family.alias, prefix+family.nodePort)},
			DefaultFilterChain:            &listenerpb.FilterChain{Name: "address", Filters: tcpFilters(prefix + "%DOWNSTREAM_LOCAL_ADDRESS%")},
			PerConnectionBufferLimitBytes: wrapperspb.UInt32(bufferLimit),
			TcpKeepalive:                  keepalive(),
		}
		for _, a := range aliases {
			if a.Alias.Is6() == family.alias.Is6() {
				host, _ := strings.CutSuffix(netip.AddrPortFrom(a.Address, 0).String(), ":0")
				l.FilterChains = append(l.FilterChains, aliasChain(a.Alias.String(), a.Alias, prefix+host))
			}
		}
		if class != frontendpb.Class_MASQ {
			l.ListenerFilters = []*listenerpb.ListenerFilter{{
				Name:       "original_src",
				ConfigType: &listenerpb.ListenerFilter_TypedConfig{TypedConfig: pack(&originalsrcpb.OriginalSrc{})},
			}}
		}
		out = append(out, l)
	}
	return out
}

// aliasChain forwards what was sent to an alias to the cluster of the host that it stands for and the port.
func aliasChain(name string, alias netip.Addr, host string) *listenerpb.FilterChain {
	return &listenerpb.FilterChain{
		Name: name,
		FilterChainMatch: &listenerpb.FilterChainMatch{PrefixRanges: []*corepb.CidrRange{{
			AddressPrefix: alias.String(), PrefixLen: wrapperspb.UInt32(uint32(alias.BitLen())),
		}}},
		Filters: tcpFilters(host + ":%DOWNSTREAM_LOCAL_PORT%"),
	}
}

// tcpFilters forwards a connection to the cluster that format names.
func tcpFilters(format string) []*listenerpb.Filter {
	return []*listenerpb.Filter{
		filter("set_filter_state", &setfilterstatenetpb.Config{OnNewConnection: []*setfilterstatepb.FilterStateValue{{
			Key: &setfilterstatepb.FilterStateValue_ObjectKey{ObjectKey: "envoy.tcp_proxy.cluster"},
			Value: &setfilterstatepb.FilterStateValue_FormatString{FormatString: &corepb.SubstitutionFormatString{
				Format: &corepb.SubstitutionFormatString_TextFormatSource{TextFormatSource: &corepb.DataSource{
					Specifier: &corepb.DataSource_InlineString{InlineString: format},
				}},
			}},
		}}}),
		filter("tcp_proxy", &tcpproxypb.TcpProxy{
			StatPrefix: "tcp",
			// Envoy requires a cluster here, and uses it only if the name above is missing.
			ClusterSpecifier: &tcpproxypb.TcpProxy_Cluster{Cluster: "none"},
			// The kernel never closes an idle connection, so neither does Envoy; keep-alives find dead peers.
			IdleTimeout:        durationpb.New(0),
			MaxConnectAttempts: wrapperspb.UInt32(connectAttempts),
		}),
	}
}

// filter wraps a network filter's configuration.
func filter(name string, config proto.Message) *listenerpb.Filter {
	return &listenerpb.Filter{Name: name, ConfigType: &listenerpb.Filter_TypedConfig{TypedConfig: pack(config)}}
}

// pack wraps a message. One that cannot be marshalled, which takes a string that is not UTF-8, becomes nil; the listener
// then breaks Envoy's constraints, and its validation reports that.
func pack(m proto.Message) *anypb.Any {
	value, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return nil
	}
	return &anypb.Any{TypeUrl: gcpresource.APITypePrefix + string(m.ProtoReflect().Descriptor().FullName()), Value: value}
}
