package kube

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/fairlead/fairlead/translate/model"
)

// service reads a Service. One that is another proxy's, headless or of type ExternalName yields nothing.
func (r Reader) service(svc *corev1.Service) model.Object {
	key := keyOf(model.KindService, svc)
	o := model.Object{Key: key}
	if !r.owns(svc) || headless(svc) || svc.Spec.Type == corev1.ServiceTypeExternalName {
		return o
	}
	rep := newReport(key)
	if rep.label("metadata.namespace", key.Namespace) && rep.label("metadata.name", key.Name) {
		o.Service = readService(svc, key, rep)
	}
	o.Problems = rep.list()
	return o
}

// owns reports whether a Service is ours. Without a name of our own, ours are the Services without the label: a label
// without a value is a label too.
func (r Reader) owns(svc *corev1.Service) bool {
	name, labelled := svc.Labels[LabelServiceProxyName]
	if r.ServiceProxyName == "" {
		return !labelled
	}
	return name == r.ServiceProxyName
}

// headless reports whether a Service has no address by intention: DNS names its endpoints.
func headless(svc *corev1.Service) bool {
	return svc.Spec.ClusterIP == corev1.ClusterIPNone ||
		len(svc.Spec.ClusterIPs) > 0 && svc.Spec.ClusterIPs[0] == corev1.ClusterIPNone
}

// readService reads a Service that is to be forwarded; nil if it has no cluster IP.
func readService(svc *corev1.Service, key model.ObjectKey, rep *report) *model.Service {
	s := &model.Service{
		Key:        model.ServiceKey{Namespace: key.Namespace, Name: key.Name},
		Created:    svc.CreationTimestamp.UTC(),
		Version:    versionOf(key, svc),
		ClusterIPs: clusterIPs(svc, rep),
	}
	if len(s.ClusterIPs) == 0 {
		return nil
	}
	checkType(svc, rep)
	s.InternalTrafficPolicy = internalPolicy(svc, rep)
	s.ExternalTrafficPolicy = externalPolicy(svc, rep)
	s.Ports = servicePorts(svc, rep)

	s.LoadBalancerIPs = loadBalancerIPs(svc, s.ClusterIPs, rep)
	s.ExternalIPs = externalIPs(svc, s.ClusterIPs, rep)
	s.SourceRanges = sourceRanges(svc, rep)
	s.HealthCheckNodePort = healthCheckNodePort(svc, rep)
	s.Affinity, s.Direct = affinity(svc, rep), direct(svc, rep)
	return s
}

func checkType(svc *corev1.Service, rep *report) {
	switch svc.Spec.Type {
	case "", corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort, corev1.ServiceTypeLoadBalancer:
	default:
		rep.add(model.InvalidValue, "spec.type: %s is not a type of Service, and is taken as ClusterIP; write ClusterIP, NodePort or LoadBalancer", quote(string(svc.Spec.Type)))
	}
}

func internalPolicy(svc *corev1.Service, rep *report) model.TrafficPolicy {
	if svc.Spec.InternalTrafficPolicy == nil {
		return model.Cluster
	}
	return policy("spec.internalTrafficPolicy", string(*svc.Spec.InternalTrafficPolicy), rep)
}

// externalPolicy reads spec.externalTrafficPolicy, which has no meaning for a Service that is not meant to be reached
// from outside, as in kube-proxy.
func externalPolicy(svc *corev1.Service, rep *report) model.TrafficPolicy {
	p := policy("spec.externalTrafficPolicy", string(svc.Spec.ExternalTrafficPolicy), rep)
	switch svc.Spec.Type {
	case corev1.ServiceTypeNodePort, corev1.ServiceTypeLoadBalancer:
		return p
	}
	if len(svc.Spec.ExternalIPs) > 0 {
		return p
	}
	return model.Cluster
}

func policy(field, text string, rep *report) model.TrafficPolicy {
	switch p := model.TrafficPolicy(text); p {
	case "", model.Cluster:
		return model.Cluster
	case model.Local:
		return p
	default:
		rep.add(model.InvalidValue, "%s: %s is not a policy, and is taken as Cluster; write Cluster or Local", field, quote(text))
		return model.Cluster
	}
}

// servicePorts reads spec.ports and leaves out what cannot be forwarded.
func servicePorts(svc *corev1.Service, rep *report) []model.Port {
	type number struct {
		protocol model.Protocol
		port     int32
	}
	if len(svc.Spec.Ports) == 0 {
		rep.add(model.InvalidPort, "spec.ports is empty, so there is nothing to forward; add a port")
	}
	ports, nodePorts, names := map[number]bool{}, map[number]bool{}, map[string]bool{}
	var all []model.Port
	for i, p := range svc.Spec.Ports {
		field := fmt.Sprintf("spec.ports[%d]", i)
		protocol, ok := rep.protocol(field+".protocol", string(p.Protocol))
		if !ok || !rep.port(field+".port", p.Port) || p.Name != "" && !rep.label(field+".name", p.Name) {
			continue
		}
		switch {
		case ports[number{protocol, p.Port}]:
			rep.add(model.InvalidPort, "%s: port %d/%s is there already; give this one another number", field, p.Port, protocol)
			continue
		case names[p.Name+"/"+string(protocol)]:
			rep.add(model.InvalidPort, "%s.name: there is a %s port named %s already; give each port a name of its own", field, protocol, quote(p.Name))
			continue
		}
		ports[number{protocol, p.Port}], names[p.Name+"/"+string(protocol)] = true, true
		port := model.Port{Name: p.Name, Protocol: protocol, Port: uint16(p.Port)}
		switch {
		case p.NodePort == 0 || !rep.port(field+".nodePort", p.NodePort):
		case nodePorts[number{protocol, p.NodePort}]:
			rep.add(model.InvalidPort, "%s.nodePort: %d/%s belongs to another port of the Service; give this one another number", field, p.NodePort, protocol)
		default:
			nodePorts[number{protocol, p.NodePort}] = true
			port.NodePort = uint16(p.NodePort)
		}
		all = append(all, port)
	}
	return all
}

// sourceRanges reads spec.loadBalancerSourceRanges. Ranges bind the addresses of their own family only, and one that holds
// all addresses lifts them, as in kube-proxy. A range that cannot be read admits nobody and binds both families: to ignore
// it would open to everyone what its owner closed.
func sourceRanges(svc *corev1.Service, rep *report) map[model.Family][]netip.Prefix {
	prefixes, bound, lifted := map[model.Family][]netip.Prefix{}, map[model.Family]bool{}, map[model.Family]bool{}
	for i, text := range svc.Spec.LoadBalancerSourceRanges {
		text = strings.TrimSpace(text) // The API server's validation accepts spaces around a range.
		if text == "" {
			continue
		}
		prefix, err := netip.ParsePrefix(text)
		if err != nil {
			rep.add(model.InvalidValue, "spec.loadBalancerSourceRanges[%d]: %s is not a range of addresses, and lets nobody in; write it like 10.0.0.0/8", i, quote(text))
			bound[model.IPv4], bound[model.IPv6] = true, true
			continue
		}
		family := model.FamilyOf(prefix.Addr())
		prefixes[family] = append(prefixes[family], prefix.Masked())
		bound[family] = true
		lifted[family] = lifted[family] || prefix.Bits() == 0
	}
	var ranges map[model.Family][]netip.Prefix
	for family := range bound {
		if lifted[family] {
			continue
		}
		if ranges == nil {
			ranges = map[model.Family][]netip.Prefix{}
		}
		ranges[family] = withoutOverlaps(prefixes[family])
	}
	return ranges
}

// withoutOverlaps returns prefixes in order, without those that another one contains. Prefixes overlap in no other way.
func withoutOverlaps(prefixes []netip.Prefix) []netip.Prefix {
	sorted := slices.SortedFunc(slices.Values(prefixes), netip.Prefix.Compare)
	outer := make([]netip.Prefix, 0, len(sorted))
	for _, p := range sorted {
		// In order, a prefix comes before all that it contains.
		if n := len(outer); n == 0 || !outer[n-1].Overlaps(p) {
			outer = append(outer, p)
		}
	}
	return outer
}

// defaultAffinity and maxAffinity are the API server's default and maximum.
const (
	defaultAffinity = 3 * time.Hour
	maxAffinity     = 24 * time.Hour
)

// affinity reads spec.sessionAffinity and its time-out.
func affinity(svc *corev1.Service, rep *report) time.Duration {
	switch svc.Spec.SessionAffinity {
	case corev1.ServiceAffinityClientIP:
	case "", corev1.ServiceAffinityNone:
		return 0
	default:
		rep.add(model.InvalidValue, "spec.sessionAffinity: %s is not an affinity, and is taken as None; write None or ClientIP", quote(string(svc.Spec.SessionAffinity)))
		return 0
	}
	c := svc.Spec.SessionAffinityConfig
	if c == nil || c.ClientIP == nil || c.ClientIP.TimeoutSeconds == nil {
		return defaultAffinity
	}
	seconds := *c.ClientIP.TimeoutSeconds
	if timeout := time.Duration(seconds) * time.Second; timeout >= time.Second && timeout <= maxAffinity {
		return timeout
	}
	rep.add(model.InvalidValue, "spec.sessionAffinityConfig.clientIP.timeoutSeconds: %d is taken as %.0f; choose one from 1 to %.0f", seconds, defaultAffinity.Seconds(), maxAffinity.Seconds())
	return defaultAffinity
}

// AnnotationForwarding asks for another way of forwarding a Service. Its one value is ForwardingDirect: the kernel of each
// node chooses endpoints by itself, as kube-proxy has it do.
const (
	AnnotationForwarding = "fairlead.io/forwarding"
	ForwardingDirect     = "direct"
)

// direct reads AnnotationForwarding.
func direct(svc *corev1.Service, rep *report) bool {
	value, annotated := svc.Annotations[AnnotationForwarding]
	if annotated && value != ForwardingDirect {
		rep.add(model.InvalidValue, "metadata.annotations[%s]: %s is no way of forwarding, and is passed over; write %s, or remove the annotation", AnnotationForwarding, quote(value), ForwardingDirect)
	}
	return value == ForwardingDirect
}

// healthCheckNodePort reads spec.healthCheckNodePort, which has a meaning only where a load balancer has to know which nodes
// have endpoints.
func healthCheckNodePort(svc *corev1.Service, rep *report) uint16 {
	number := svc.Spec.HealthCheckNodePort
	local := svc.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
	if svc.Spec.Type != corev1.ServiceTypeLoadBalancer || !local || number == 0 || !rep.port("spec.healthCheckNodePort", number) {
		return 0
	}
	return uint16(number)
}
