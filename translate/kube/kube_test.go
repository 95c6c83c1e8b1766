package kube

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/fairlead/fairlead/translate/model"
)

// What the fields of objects mean is told by the scenarios; here is what they cannot show.

var (
	created = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	written = created.Add(time.Hour)
	trigger = created.Add(59 * time.Minute)
	seen    = created.Add(2 * time.Hour)
)

func serviceAt(times ...time.Time) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: meta("web", times...),
		Spec:       corev1.ServiceSpec{ClusterIP: "10.96.0.1", Ports: []corev1.ServicePort{{Port: 80}}},
	}
}

func sliceAt(annotation string, times ...time.Time) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{ObjectMeta: meta("web-1", times...), AddressType: discoveryv1.AddressTypeIPv4}
	s.Labels = map[string]string{discoveryv1.LabelServiceName: "web"}
	if annotation != "" {
		s.Annotations = map[string]string{corev1.EndpointsLastChangeTriggerTime: annotation}
	}
	return s
}

// meta returns metadata with a time of creation and times of writing.
func meta(name string, times ...time.Time) metav1.ObjectMeta {
	m := metav1.ObjectMeta{Namespace: "default", Name: name, ResourceVersion: "7"}
	for i, at := range times {
		if i == 0 {
			m.CreationTimestamp = metav1.NewTime(at)
		} else {
			m.ManagedFields = append(m.ManagedFields, metav1.ManagedFieldsEntry{Time: &metav1.Time{Time: at}})
		}
	}
	m.ManagedFields = append(m.ManagedFields, metav1.ManagedFieldsEntry{}) // An entry need not have a time.
	return m
}

func TestReadTellsWhenAnObjectChanged(t *testing.T) {
	for _, tc := range []struct {
		name   string
		object runtime.Object
		want   time.Time
	}{
		{"as seen", serviceAt(), seen},
		{"as created", serviceAt(created), created},
		{"as written last", serviceAt(created, written, created.Add(time.Minute)), written},
		{"a node, as written", &corev1.Node{ObjectMeta: meta("n1", created, written)}, written},
		{"a slice, as triggered", sliceAt(trigger.Format(time.RFC3339Nano), created, written), trigger},
		{"a slice, as written", sliceAt("", created, written), written},
		{"a slice with a trigger that is no time", sliceAt("soon", created, written), written},
		{"a slice, as seen", sliceAt(""), seen},
	} {
		t.Run(tc.name, func(t *testing.T) {
			o := Reader{}.Read(tc.object, seen)
			var got model.ObjectVersion
			switch {
			case o.Service != nil:
				got = o.Service.Version
			case o.Slice != nil:
				got = o.Slice.Version
			case o.Node != nil:
				got = o.Node.Version
			}
			if want := (model.ObjectVersion{Object: o.Key.String(), ResourceVersion: "7", At: tc.want}); got != want {
				t.Errorf("got %+v, want %+v", got, want)
			}
		})
	}
}

func TestReadPassesOtherObjectsOver(t *testing.T) {
	got := Reader{}.Read(&corev1.Pod{ObjectMeta: meta("p")}, seen)
	if diff := cmp.Diff(model.Object{}, got); diff != "" {
		t.Errorf("a Pod means something (-want +got):\n%s", diff)
	}
}

func TestReadNode(t *testing.T) {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", Labels: map[string]string{corev1.LabelTopologyZone: "a"}}}
	n.Spec.PodCIDR, n.Spec.PodCIDRs = "10.244.1.0/24", []string{"10.244.1.7/24", "fd00:244:1::/64"}
	n.Status.Addresses = []corev1.NodeAddress{
		{Type: corev1.NodeHostName, Address: "n1"},
		{Type: corev1.NodeExternalIP, Address: "203.0.113.1"},
		{Type: corev1.NodeInternalIP, Address: "10.0.0.1"},
		{Type: corev1.NodeInternalIP, Address: "fd00::1"},
		{Type: corev1.NodeInternalDNS, Address: "n1.internal"},
	}
	want := model.Object{
		Key: model.ObjectKey{Kind: model.KindNode, Name: "n1"},
		Node: &model.Node{
			Name:      "n1",
			Zone:      "a",
			Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1"), netip.MustParseAddr("203.0.113.1")},
			PodCIDRs:  []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd00:244:1::/64")},
			Version:   model.ObjectVersion{Object: "Node n1", At: seen},
		},
	}
	got := Reader{}.Read(n, seen)
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); diff != "" {
		t.Errorf("node (-want +got):\n%s", diff)
	}
}

func TestReadLeavesObjectsAlone(t *testing.T) {
	s := serviceAt(created, written)
	s.Spec.ExternalIPs = []string{"192.0.2.1", "odd", "192.0.2.2"}
	s.Spec.LoadBalancerSourceRanges = []string{" 10.0.0.0/8"}
	s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "192.0.2.1"}}
	slice := sliceAt("", created)
	slice.Endpoints = []discoveryv1.Endpoint{{Addresses: []string{"10.0.0.1"}, Hints: &discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: "a"}}}}}
	for _, o := range []runtime.Object{s, slice} {
		before := fmt.Sprint(mustMarshal(t, o))
		Reader{}.Read(o, seen)
		if after := fmt.Sprint(mustMarshal(t, o)); after != before {
			t.Errorf("reading changed %s to %s", before, after)
		}
	}
}

func mustMarshal(t *testing.T, o runtime.Object) string {
	t.Helper()
	text, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestProblemsCanBeShown(t *testing.T) {
	s := serviceAt()
	s.Name = "\x1b[31mred\n" + strings.Repeat("é", 200)
	s.Spec.ExternalIPs = []string{"\x1b]0;title\x07"}
	problems := Reader{}.Read(s, seen).Problems
	s.Name = "web"
	problems = append(problems, Reader{}.Read(s, seen).Problems...)
	if len(problems) != 2 {
		t.Fatalf("got %d problems, want one about the name and one about the address: %v", len(problems), problems)
	}
	for _, p := range problems {
		for _, text := range []string{p.Object, p.Message} {
			if strings.ContainsAny(text, "\x1b\n\x07") || len(text) > 500 || strings.ToValidUTF8(text, "") != text {
				t.Errorf("%q is not for a terminal", text)
			}
		}
	}
}
