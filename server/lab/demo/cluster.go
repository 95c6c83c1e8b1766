package demo

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/fairlead/fairlead/server/lab"
	"github.com/fairlead/fairlead/server/source"
)

// clientNumber is above those of the manifests' pods.
const clientNumber = 100

// buildNetwork makes the nodes that the manifests describe, the pods that their EndpointSlices name, a client pod, and
// a host outside. Those addresses must follow the lab's address plan.
func (d *demo) buildNetwork(context.Context) (string, error) {
	if err := os.CopyFS(d.manifests(), os.DirFS(d.config.Manifests)); err != nil {
		return "", fmt.Errorf("copy the manifests (run this in the checkout, or name their folder): %w", err)
	}
	manifests, err := source.ReadManifests([]string{d.manifests()}, nil)
	if err != nil {
		return "", err
	}
	if p := manifests.Problems; len(p) > 0 {
		return "", fmt.Errorf("%s: %s: %s", p[0].Object, p[0].Reason, p[0].Message)
	}
	if d.lab, err = lab.New(); err != nil {
		return "", err
	}
	for _, o := range manifests.Objects {
		switch o := o.(type) {
		case *corev1.Node:
			err = errors.Join(err, d.addNode(o))
		case *corev1.Service:
			d.services[o.Name] = o
		}
	}
	if err != nil {
		return "", err
	}
	if len(d.nodes) < 2 {
		return "", fmt.Errorf("%s describes %d nodes: the story needs two", d.config.Manifests, len(d.nodes))
	}
	for _, o := range manifests.Objects {
		if s, ok := o.(*discoveryv1.EndpointSlice); ok {
			for i := range s.Endpoints {
				if err := d.addPod(s, &s.Endpoints[i]); err != nil {
					return "", fmt.Errorf("EndpointSlice %s/%s: %w", s.Namespace, s.Name, err)
				}
			}
		}
	}
	if d.client, err = d.nodes[0].AddPod("client", clientNumber); err != nil {
		return "", err
	}
	if d.outside, err = d.lab.AddOutside("outside"); err != nil {
		return "", err
	}
	return fmt.Sprintf("nodes %s and %s, %d pods that serve and one that asks, a host outside", d.nodes[0].Name, d.nodes[1].Name, len(d.pods)), nil
}

func (d *demo) addNode(object *corev1.Node) error {
	n, err := d.lab.AddNode(object.Name, lab.Routed)
	if err != nil {
		return err
	}
	d.nodes = append(d.nodes, n)
	for _, a := range object.Status.Addresses {
		if a.Type == corev1.NodeInternalIP && a.Address != n.IPv4.String() && a.Address != n.IPv6.String() {
			return fmt.Errorf("addresses of Node %s are %s and %s here, not %s", n.Name, n.IPv4, n.IPv6, a.Address)
		}
	}
	return nil
}

// addPod makes the pod behind an endpoint, unless another slice had it before.
func (d *demo) addPod(slice *discoveryv1.EndpointSlice, e *discoveryv1.Endpoint) error {
	if e.TargetRef == nil || e.NodeName == nil || len(e.Addresses) == 0 || len(slice.Ports) == 0 {
		return errors.New("the demo needs each endpoint's targetRef, nodeName and address, and a port")
	}
	address, err := netip.ParseAddr(e.Addresses[0])
	if err != nil {
		return err
	}
	name := e.TargetRef.Name
	host := d.lab.Host(name)
	if host == nil {
		// In the lab's address plan the last byte of an IPv4 address is the pod's number.
		if !address.Is4() {
			return fmt.Errorf("pod %s: the demo needs its IPv4 address first", name)
		}
		p, err := d.startPod(name, *e.NodeName, int(address.As4()[3]), slice.Ports[0])
		if err != nil {
			return err
		}
		host = p.Host
	}
	if address != host.IPv4 && address != host.IPv6 {
		return fmt.Errorf("pod %s: its addresses here are %s and %s, not %s", name, host.IPv4, host.IPv6, address)
	}
	return nil
}

// startPod makes a pod that serves a port: HTTP, or datagrams where the port is UDP. Number 0 is any.
func (d *demo) startPod(name, node string, number int, port discoveryv1.EndpointPort) (*pod, error) {
	n := d.node(node)
	if n == nil {
		return nil, fmt.Errorf("pod %s: no manifest describes its node %s", name, node)
	}
	host, err := n.AddPod(name, number)
	if err != nil {
		return nil, err
	}
	serve := host.ServeHTTP
	if port.Protocol != nil && *port.Protocol == corev1.ProtocolUDP {
		serve = host.ServeUDP
	}
	p := &pod{Host: host, node: n}
	if p.server, err = serve(name, uint16(*port.Port)); err != nil {
		return nil, err
	}
	d.pods = append(d.pods, p)
	return p, nil
}

// deletePod has a pod finish its work and removes it.
func (d *demo) deletePod(ctx context.Context, name string) error {
	i := slices.IndexFunc(d.pods, func(p *pod) bool { return p.Name == name })
	if i < 0 {
		return fmt.Errorf("no manifest has an endpoint whose targetRef is pod %s, which the story is about", name)
	}
	p := d.pods[i]
	if err := p.server.Drain(ctx); err != nil {
		return fmt.Errorf("%s does not finish: %w", name, err)
	}
	d.pods = slices.Delete(d.pods, i, i+1)
	return p.Delete()
}

// webPods returns the pods of Service web.
func (d *demo) webPods() []*pod {
	return slices.DeleteFunc(slices.Clone(d.pods), func(p *pod) bool { return !strings.HasPrefix(p.Name, "web-") })
}

func (d *demo) node(name string) *lab.Node {
	for _, n := range d.nodes {
		if n.Name == name {
			return n
		}
	}
	return nil
}

// frontend returns the address of a Service's first port in a family.
func (d *demo) frontend(service string, family corev1.IPFamily) (netip.AddrPort, error) {
	s := d.services[service]
	if s == nil {
		return netip.AddrPort{}, fmt.Errorf("no manifest describes Service %s, which the story is about", service)
	}
	for i, f := range s.Spec.IPFamilies {
		if f == family && i < len(s.Spec.ClusterIPs) && len(s.Spec.Ports) > 0 {
			a, err := netip.ParseAddr(s.Spec.ClusterIPs[i])
			return netip.AddrPortFrom(a, uint16(s.Spec.Ports[0].Port)), err
		}
	}
	return netip.AddrPort{}, fmt.Errorf("no %s address and port in Service %s/%s", family, s.Namespace, s.Name)
}
