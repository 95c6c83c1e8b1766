package envoy

import (
	"net/netip"
	"strings"
	"time"

	xdscorepb "github.com/cncf/xds/go/xds/core/v3"
	matcherpb "github.com/cncf/xds/go/xds/type/matcher/v3"
	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerpb "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	setfilterstatepb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/set_filter_state/v3"
	originalsrcpb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/original_src/v3"
	setfilterstatenetpb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/set_filter_state/v3"
	tcpproxypb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	udpproxypb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/udp/udp_proxy/v3"
	networkpb "github.com/envoyproxy/go-control-plane/envoy/extensions/matching/common_inputs/network/v3"
	gcpresource "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/fairlead/fairlead/translate/frontendpb"
	"github.com/fairlead/fairlead/translate/model"
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
	// Masquerade4 and Masquerade6 hold the sources that datagrams of class masq arrive with.
	Masquerade4 = netip.MustParsePrefix("169.254.65.0/24")
	Masquerade6 = netip.MustParsePrefix("fd00:fa1:1::/64")
)

// Timeouts and sizes of the data path.
const (
	// udpIdle ends a UDP session; conntrack expires an unanswered UDP flow after the same time.
	udpIdle = 30 * time.Second
	// maxDatagram is the largest UDP payload. Envoy's default drops what is longer than 1500 bytes.
	maxDatagram = 65_535
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

// UDPListener returns the listener of the UDP frontend f of that name, bound to its very address: Envoy answers datagrams from
// the port that its socket is bound to, so they cannot be redirected to another one. pods are the sources that count as pods,
// which matters when connections from outside have endpoints of their own.
func UDPListener(frontend string, f *frontendpb.Frontend, pods []netip.Prefix, aliases []Alias) *listenerpb.Listener {
	ip := f.Addr()
	if !ip.IsValid() {
		ip = NodePortAlias4
		if f.GetIpv6() {
			ip = NodePortAlias6
		}
	}
	for _, a := range aliases {
		if a.Address == ip {
			ip = a.Alias
		}
	}
	matcher := &matcherpb.Matcher{OnNoMatch: udpRoute(clusterName(frontend, false))}
	if outside := Routes(f)[model.FromOutside]; f.GetKind() != string(model.ClusterIP) && (outside.GetClass() == frontendpb.Class_EXTERNAL || outside.GetVerdict() == frontendpb.Verdict_DROP) {
		matcher.OnNoMatch = udpRoute(clusterName(frontend, true))
		matcher.MatcherType = sourceMatcher(append([]netip.Prefix{Masquerade4, Masquerade6}, pods...), udpRoute(clusterName(frontend, false)))
	}
	socket := &corepb.UdpSocketConfig{
		MaxRxDatagramSize: wrapperspb.UInt64(maxDatagram),
		// Envoy's sockets always coalesce datagrams; only this way of reading takes them apart again.
		PreferGro: wrapperspb.Bool(true),
	}
	return &listenerpb.Listener{
		Name:              UDPListenerName(frontend),
		StatPrefix:        "udp",
		Address:           address(ip.String(), uint16(f.GetPort()), corepb.SocketAddress_UDP),
		Transparent:       wrapperspb.Bool(true),
		UdpListenerConfig: &listenerpb.UdpListenerConfig{DownstreamSocketConfig: socket},
		ListenerFilters: []*listenerpb.ListenerFilter{{Name: "udp_proxy", ConfigType: &listenerpb.ListenerFilter_TypedConfig{
			TypedConfig: pack(&udpproxypb.UdpProxyConfig{
				StatPrefix:           "udp",
				RouteSpecifier:       &udpproxypb.UdpProxyConfig_Matcher{Matcher: matcher},
				IdleTimeout:          durationpb.New(udpIdle),
				UseOriginalSrcIp:     true,
				UpstreamSocketConfig: socket,
			}),
		}}},
	}
}

// UDPListenerName returns the name of a frontend's listener.
func UDPListenerName(frontend string) string { return udp + strings.TrimSuffix(frontend, "/UDP") }

// udpRoute sends a datagram to a cluster.
func udpRoute(cluster string) *matcherpb.Matcher_OnMatch {
	return &matcherpb.Matcher_OnMatch{OnMatch: &matcherpb.Matcher_OnMatch_Action{Action: &xdscorepb.TypedExtensionConfig{
		Name: "route", TypedConfig: pack(&udpproxypb.Route{Cluster: cluster}),
	}}}
}

// sourceMatcher matches datagrams from any of the prefixes.
func sourceMatcher(prefixes []netip.Prefix, onMatch *matcherpb.Matcher_OnMatch) *matcherpb.Matcher_MatcherTree_ {
	ranges := make([]*xdscorepb.CidrRange, len(prefixes))
	for i, p := range prefixes {
		ranges[i] = &xdscorepb.CidrRange{AddressPrefix: p.Addr().String(), PrefixLen: wrapperspb.UInt32(uint32(p.Bits()))}
	}
	return &matcherpb.Matcher_MatcherTree_{MatcherTree: &matcherpb.Matcher_MatcherTree{
		Input: &xdscorepb.TypedExtensionConfig{Name: "source-ip", TypedConfig: pack(&networkpb.SourceIPInput{})},
		TreeType: &matcherpb.Matcher_MatcherTree_CustomMatch{CustomMatch: &xdscorepb.TypedExtensionConfig{
			Name: "ip", TypedConfig: pack(&matcherpb.IPMatcher{RangeMatchers: []*matcherpb.IPMatcher_IPRangeMatcher{{Ranges: ranges, OnMatch: onMatch}}}),
		}},
	}}
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
