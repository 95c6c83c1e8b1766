package translate

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/fairlead/fairlead/translate/kube"
	"github.com/fairlead/fairlead/translate/model"
)

// choices makes decisions from a fuzzer's bytes; when they are used up, the first of all choices.
type choices []byte

func (c *choices) upTo(n int) int {
	if len(*c) == 0 {
		return 0
	}
	b := (*c)[0]
	*c = (*c)[1:]
	return int(b) % n
}

func (c *choices) of(values ...string) string { return values[c.upTo(len(values))] }

func (c *choices) flag() *bool {
	return [...]*bool{nil, new(true), new(false)}[c.upTo(3)]
}

// some returns up to n values.
func some[T any](c *choices, n int, value func() T) []T {
	var all []T
	for range c.upTo(n + 1) {
		all = append(all, value())
	}
	return all
}

// The vocabulary is small, so that objects collide, and holds what is wrong as well as what is right.
func (c *choices) address() string {
	return c.of("10.0.0.1", "10.0.0.2", "10.0.0.3", "fd00::1", "fd00::2", "", "10.0.0", "127.0.0.1", "fe80::1%eth0", "::ffff:10.0.0.1", "None", "0.0.0.0")
}
func (c *choices) node() string { return c.of("n1", "n2", "", "n3", "N/4") }
func (c *choices) zone() string { return c.of("a", "b", "", "c") }
func (c *choices) name() string { return c.of("s1", "s2", "s3", "", strings.Repeat("x", 300)) }
func (c *choices) number() int32 {
	return [...]int32{80, 81, 30080, 0, -1, 70000}[c.upTo(6)]
}
func (c *choices) protocol() corev1.Protocol {
	return corev1.Protocol(c.of("TCP", "UDP", "", "SCTP", "tcp"))
}
func (c *choices) policy() string { return c.of("Cluster", "Local", "", "Odd") }

func (c *choices) service() *corev1.Service {
	iTP := corev1.ServiceInternalTrafficPolicy(c.policy())
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: c.name(), CreationTimestamp: metav1.Unix(int64(c.upTo(3)), 0)},
		Spec: corev1.ServiceSpec{
			Type:                     corev1.ServiceType(c.of("ClusterIP", "NodePort", "LoadBalancer", "ExternalName", "Odd")),
			ClusterIPs:               some(c, 3, c.address),
			ExternalIPs:              some(c, 2, c.address),
			InternalTrafficPolicy:    &iTP,
			ExternalTrafficPolicy:    corev1.ServiceExternalTrafficPolicy(c.policy()),
			SessionAffinity:          corev1.ServiceAffinity(c.of("None", "ClientIP", "Odd")),
			LoadBalancerSourceRanges: some(c, 2, func() string { return c.of("10.0.0.0/8", "0.0.0.0/0", "fd00::/8", "odd", " ") }),
		},
	}
	s.Spec.Ports = some(c, 3, func() corev1.ServicePort {
		return corev1.ServicePort{Name: c.of("a", "", "b", "C"), Protocol: c.protocol(), Port: c.number(), NodePort: c.number()}
	})
	s.Status.LoadBalancer.Ingress = some(c, 2, func() corev1.LoadBalancerIngress {
		mode := corev1.LoadBalancerIPMode(c.of("VIP", "Proxy", "Odd"))
		return corev1.LoadBalancerIngress{IP: c.address(), IPMode: &mode}
	})
	return s
}

func (c *choices) slice() *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Name: "slice-" + c.of("1", "2", "3"), Labels: map[string]string{discoveryv1.LabelServiceName: c.name()}},
		AddressType: discoveryv1.AddressType(c.of("IPv4", "IPv6", "FQDN", "Odd")),
	}
	s.Ports = some(c, 2, func() discoveryv1.EndpointPort {
		name, protocol, port := c.of("a", "", "b"), c.protocol(), c.number()
		return discoveryv1.EndpointPort{Name: &name, Protocol: &protocol, Port: &port}
	})
	s.Endpoints = some(c, 5, func() discoveryv1.Endpoint {
		node := c.node()
		return discoveryv1.Endpoint{
			Addresses:  some(c, 1, c.address),
			NodeName:   &node,
			Conditions: discoveryv1.EndpointConditions{Ready: c.flag(), Serving: c.flag(), Terminating: c.flag()},
			Hints: &discoveryv1.EndpointHints{
				ForNodes: some(c, 1, func() discoveryv1.ForNode { return discoveryv1.ForNode{Name: c.node()} }),
				ForZones: some(c, 2, func() discoveryv1.ForZone { return discoveryv1.ForZone{Name: c.zone()} }),
			},
		}
	})
	return s
}

func (c *choices) object() runtime.Object {
	switch c.upTo(5) {
	case 0, 1:
		return c.service()
	case 2, 3:
		return c.slice()
	default:
		return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: c.node(), Labels: map[string]string{corev1.LabelTopologyZone: c.zone()}}}
	}
}

// looks returns what every view sees of every Service.
func looks(w *World) map[string]string {
	all := map[string]string{}
	for _, key := range w.Services() {
		for _, node := range []string{"n1", "n2", "n3", "N/4", ""} {
			for _, zone := range []string{"a", "b", "c", ""} {
				if plan := w.Plan(key); plan != nil {
					all[key.String()+" to "+node+" in "+zone] = strings.Join(frontendTexts(plan.frontendsOf(model.View{Node: node, Zone: zone})), "\n")
				}
			}
		}
	}
	return all
}

// FuzzWorld tells a World of arbitrary changes and checks what must hold whatever they are: it ends like a World that is
// told of the remaining objects only, in any order; Services that look different were reported; variants hide nothing.
func FuzzWorld(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte("services, slices and nodes"))
	f.Add(slices.Repeat([]byte{0, 1, 2, 3, 5, 7, 11}, 60))
	f.Add(slices.Repeat([]byte{2, 0, 1, 0, 0, 1, 1, 0, 0, 1, 4, 1, 2, 0, 1, 0, 1}, 40))
	f.Fuzz(func(t *testing.T, data []byte) {
		c := choices(data[:min(len(data), 1000)]) // Some 30 changes; more show nothing new, slowly.
		w, now := NewWorld(), map[model.ObjectKey]runtime.Object{}
		before := map[string]string{}
		for len(c) > 0 {
			o := c.object()
			read := kube.Reader{}.Read(o, time.Time{})
			if c.upTo(4) == 3 {
				delete(now, read.Key)
				w.Delete(read.Key)
			} else {
				now[read.Key] = o
				w.Set(read)
			}
			after := looks(w)
			checkReported(t, w.Changed(), before, after)
			before = after
		}
		checkVariants(t, w)
		keys := slices.SortedFunc(maps.Keys(now), func(a, b model.ObjectKey) int { return strings.Compare(a.String(), b.String()) })
		for _, order := range []string{"in order", "backwards"} {
			fresh := NewWorld()
			for _, key := range keys {
				fresh.Set(kube.Reader{}.Read(now[key], time.Time{}))
			}
			for _, node := range []string{"n1", "n3"} {
				if diff := cmp.Diff(tableText(t, fresh.Table(node)), tableText(t, w.Table(node))); diff != "" {
					t.Errorf("table of %s (-objects told %s +after changes):\n%s", node, order, diff)
				}
			}
			slices.Reverse(keys)
		}
	})
}

// FuzzTableJSON reads Services, slices and nodes with arbitrary texts in their fields: the table in JSON is valid, has every
// frontend and Problem, and says nothing that is not UTF-8.
func FuzzTableJSON(f *testing.F) {
	f.Add("web", "http", "10.96.0.1", "198.51.100.7", "10.244.0.1", "a", "10.0.0.0/8", int32(80))
	f.Add("\xff", "\"", "None", "::1", "", "\u2028", "::/0", int32(-1))
	f.Fuzz(func(t *testing.T, name, port, clusterIP, external, endpoint, zone, sources string, number int32) {
		meta := metav1.ObjectMeta{Namespace: "default", Name: name}
		labelled := meta
		labelled.Labels = map[string]string{discoveryv1.LabelServiceName: name}
		w := NewWorld()
		for _, o := range []runtime.Object{
			&corev1.Service{ObjectMeta: meta, Spec: corev1.ServiceSpec{
				Type: corev1.ServiceTypeLoadBalancer, ClusterIP: clusterIP, ClusterIPs: []string{clusterIP}, ExternalIPs: []string{external},
				Ports:                    []corev1.ServicePort{{Name: port, Port: number, NodePort: number}, {Name: "other", Port: 81, Protocol: corev1.Protocol(port)}},
				LoadBalancerSourceRanges: []string{sources}, SessionAffinity: corev1.ServiceAffinity(zone),
			}, Status: corev1.ServiceStatus{LoadBalancer: corev1.LoadBalancerStatus{Ingress: []corev1.LoadBalancerIngress{{IP: external}}}}},
			&discoveryv1.EndpointSlice{
				ObjectMeta: labelled, AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: &port, Port: &number}},
				Endpoints: []discoveryv1.Endpoint{{Addresses: []string{endpoint}, Zone: &zone, NodeName: &name}},
			},
			&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelTopologyZone: zone}}},
		} {
			w.Set(kube.Reader{}.Read(o, time.Time{}))
		}
		table := w.Table(name)
		text, err := table.JSON()
		if err != nil {
			t.Fatal(err)
		}
		var got struct {
			Frontends []frontendJSON
			Problems  []model.Problem
		}
		if err := json.Unmarshal(text, &got); err != nil || !utf8.Valid(text) {
			t.Fatalf("%v: %q", err, text)
		}
		if len(got.Frontends) != len(table.Frontends) || len(got.Problems) != len(table.Problems) {
			t.Errorf("%d frontends and %d problems in JSON, want %d and %d", len(got.Frontends), len(got.Problems), len(table.Frontends), len(table.Problems))
		}
	})
}

func tableText(t *testing.T, table Table) string {
	t.Helper()
	text, err := table.JSON()
	if err != nil {
		t.Fatal(err)
	}
	return table.Text() + string(text)
}

// checkReported checks that what looks different was reported as changed.
func checkReported(t *testing.T, changed []model.ServiceKey, before, after map[string]string) {
	t.Helper()
	for _, looks := range []map[string]string{before, after} {
		for what := range looks {
			service, _, _ := strings.Cut(what, " to ")
			if before[what] != after[what] && !slices.ContainsFunc(changed, func(k model.ServiceKey) bool { return k.String() == service }) {
				t.Errorf("%s looks different, but was not reported:\n%s\nis now\n%s", what, before[what], after[what])
			}
		}
	}
}

// checkVariants checks that every view sees what the other views of its variant see.
func checkVariants(t *testing.T, w *World) {
	t.Helper()
	byVariant := map[string]string{}
	for what, look := range looks(w) {
		var node, zone string
		service, view, _ := strings.Cut(what, " to ")
		node, zone, _ = strings.Cut(view, " in ")
		namespace, name, _ := strings.Cut(service, "/")
		variant := w.Plan(model.ServiceKey{Namespace: namespace, Name: name}).Variant(model.View{Node: node, Zone: zone})
		key := fmt.Sprintf("%s %s", service, variant)
		if other, ok := byVariant[key]; ok && other != look {
			t.Errorf("two views of variant %q see different things:\n%s\n%s", key, other, look)
		}
		byVariant[key] = look
	}
}
