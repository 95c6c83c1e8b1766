package kube

import (
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/fairlead/fairlead/translate/model"
)

// slice reads an EndpointSlice. One of a headless Service, or of names instead of addresses, yields nothing.
func slice(es *discoveryv1.EndpointSlice) model.Object {
	key := keyOf(model.KindEndpointSlice, es)
	o := model.Object{Key: key}
	if _, headless := es.Labels[corev1.IsHeadlessService]; headless || es.AddressType == discoveryv1.AddressTypeFQDN {
		return o
	}
	rep := newReport(key)
	if rep.label("metadata.namespace", key.Namespace) && rep.subdomain("metadata.name", key.Name) {
		o.Slice = readSlice(es, key, rep)
	}
	o.Problems = rep.list()
	return o
}

// readSlice reads a slice of addresses; nil if it belongs to no Service.
func readSlice(es *discoveryv1.EndpointSlice, key model.ObjectKey, rep *report) *model.EndpointSlice {
	service := es.Labels[discoveryv1.LabelServiceName]
	if service == "" {
		rep.add(model.InvalidObject, "metadata.labels: %s is missing, so the slice belongs to no Service; add it with the Service's name", discoveryv1.LabelServiceName)
		return nil
	}
	if !rep.label("metadata.labels["+discoveryv1.LabelServiceName+"]", service) {
		return nil
	}
	s := &model.EndpointSlice{
		Namespace: key.Namespace,
		Name:      key.Name,
		Service:   model.ServiceKey{Namespace: key.Namespace, Name: service},
		Version:   versionOf(key, es),
		Family:    model.Family(es.AddressType),
	}
	if s.Family != model.IPv4 && s.Family != model.IPv6 {
		rep.add(model.InvalidValue, "addressType: %s is not a type of address; write IPv4 or IPv6", quote(string(es.AddressType)))
		return nil
	}
	// The controller annotates the slice with when the pod changed that made it write: the latency counts from then.
	if t, err := time.Parse(time.RFC3339Nano, es.Annotations[corev1.EndpointsLastChangeTriggerTime]); err == nil {
		s.Version.At = t.UTC()
	}
	s.Ports = slicePorts(es, rep)
	s.Endpoints = make([]model.SliceEndpoint, 0, len(es.Endpoints))
	for i := range es.Endpoints {
		if e, ok := readEndpoint(&es.Endpoints[i], s.Family, i, rep); ok {
			s.Endpoints = append(s.Endpoints, e)
		}
	}
	return s
}

// slicePorts reads a slice's ports. Those without a name or a number are passed over, as in kube-proxy: the API server
// fills the name in, and a port without a number stands for all ports, which no Service asks for.
func slicePorts(es *discoveryv1.EndpointSlice, rep *report) []model.SlicePort {
	var all []model.SlicePort
	for i, p := range es.Ports {
		if p.Name == nil || p.Port == nil || *p.Port == 0 {
			continue
		}
		var text corev1.Protocol
		if p.Protocol != nil {
			text = *p.Protocol
		}
		field := fmt.Sprintf("ports[%d]", i)
		protocol, ok := rep.protocol(field+".protocol", string(text))
		if !ok || !rep.port(field+".port", *p.Port) || *p.Name != "" && !rep.label(field+".name", *p.Name) {
			continue
		}
		all = append(all, model.SlicePort{Name: *p.Name, Protocol: protocol, Port: uint16(*p.Port)})
	}
	return all
}

// readEndpoint reads one endpoint. Of its addresses only the first counts, as in kube-proxy.
func readEndpoint(e *discoveryv1.Endpoint, family model.Family, i int, rep *report) (model.SliceEndpoint, bool) {
	if len(e.Addresses) == 0 {
		rep.add(model.InvalidAddress, "endpoints[%d].addresses is empty; give it an address, or remove the endpoint", i)
		return model.SliceEndpoint{}, false
	}
	field := fmt.Sprintf("endpoints[%d].addresses[0]", i)
	a, ok := rep.address(field, e.Addresses[0])
	if !ok || !rep.routable(field, a, false) {
		return model.SliceEndpoint{}, false
	}
	if model.FamilyOf(a) != family {
		rep.add(model.WrongFamily, "%s: %s is %s in a slice of %s; move it to a slice of its own family", field, a, model.FamilyOf(a), family)
		return model.SliceEndpoint{}, false
	}
	read := model.SliceEndpoint{
		Address:     a,
		Node:        value(e.NodeName, ""),
		Zone:        value(e.Zone, ""),
		Ready:       value(e.Conditions.Ready, true),
		Serving:     value(e.Conditions.Serving, true),
		Terminating: value(e.Conditions.Terminating, false),
	}
	if e.Hints != nil {
		for _, n := range e.Hints.ForNodes {
			read.NodeHints = append(read.NodeHints, n.Name)
		}
		for _, z := range e.Hints.ForZones {
			read.ZoneHints = append(read.ZoneHints, z.Name)
		}
	}
	if t := e.TargetRef; t != nil {
		read.Target = model.ObjectKey{Kind: model.ObjectKind(t.Kind), Namespace: t.Namespace, Name: t.Name}.String()
	}
	return read, true
}

// value returns what a pointer points to, or a default for nil.
func value[T any](p *T, missing T) T {
	if p == nil {
		return missing
	}
	return *p
}
