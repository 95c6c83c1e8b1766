package explain

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/translate"
	"github.com/fairlead/fairlead/translate/model"
)

// report has a frontend of each verdict, an endpoint of each sort and a problem.
func report() Report {
	forward := func(source model.Source, policy string, endpoints ...string) Route {
		return Route{Verdict: model.Forward, Source: source, Policy: policy, Endpoints: endpoints}
	}
	both := forward(model.Preserve, "Cluster", "10.244.1.1:8080", "10.244.2.2:8080")
	refused := Route{Verdict: model.Refuse, Policy: "Cluster", Why: "no endpoint is ready, here or on another node"}
	return Report{
		Service: "shop/web",
		Views: []View{
			{
				Nodes: []string{"n1", "n2"},
				Frontends: []Frontend{
					{Name: "10.96.0.10:80/TCP", Kind: model.ClusterIP, Routes: map[string]Route{
						"pod": both, "node": both, "outside": forward(model.Masquerade, "Cluster", both.Endpoints...),
					}},
					{Name: "203.0.113.1:80/TCP", Kind: model.LoadBalancer, SourceRanges: &[]string{"192.0.2.0/24", "198.51.100.0/24"}, Routes: map[string]Route{
						"pod": both, "node": forward(model.Masquerade, "Cluster", both.Endpoints...), "outside": forward(model.Preserve, "Local", "10.244.1.1:8080"),
					}},
				},
				Ports: []Port{
					{ServicePort: "shop/web:http/TCP", Family: model.IPv4, Hints: "endpoints hinted to this zone are used", Endpoints: []Endpoint{
						{Address: "10.244.1.1:8080", Slice: "web-1", Target: "Pod shop/web-a", Node: "n1", Zone: "a", Cluster: translate.Used, Local: translate.Used},
						{Address: "10.244.2.2:8080", Slice: "web-1", Node: "n2", Cluster: translate.OtherZone, Local: translate.NotLocal},
						{Address: "10.244.2.3", Slice: "web-2", Cluster: translate.NoSuchPort, Local: translate.NoSuchPort, SlicePorts: []string{"a/TCP"}},
					}},
					{ServicePort: "shop/web:http/TCP", Family: model.IPv6, Endpoints: []Endpoint{}},
				},
			},
			{
				Nodes: []string{},
				Frontends: []Frontend{{Name: "*:30080/TCP", Kind: model.NodePort, Routes: map[string]Route{
					"pod": refused, "node": refused, "outside": {Verdict: model.Drop, Policy: "Local"},
				}}},
				Ports: []Port{{ServicePort: "shop/web:http/TCP", Family: model.IPv4, Endpoints: []Endpoint{
					{Address: "10.244.2.4:8080", Slice: "web-1", Cluster: translate.NotReady},
				}}},
			},
		},
		Problems: []model.Problem{{Object: "EndpointSlice shop/web-2", Reason: model.InvalidPort, Message: "ports[0].port: 0 is no port"}},
	}
}

const wholeText = `Service shop/web

On n1, n2:

  FRONTEND             KIND           FROM        A CONNECTION MEETS
  10.96.0.10:80/TCP    ClusterIP      pod, node   one of 2 endpoints; they see the client
  10.96.0.10:80/TCP    ClusterIP      outside     one of 2 endpoints; they see the node
  203.0.113.1:80/TCP   LoadBalancer   pod         one of 2 endpoints; they see the client
  203.0.113.1:80/TCP   LoadBalancer   node        one of 2 endpoints; they see the node
  203.0.113.1:80/TCP   LoadBalancer   outside     endpoint 10.244.1.1:8080 on this node; they see the client
  203.0.113.1:80/TCP   LoadBalancer   any         dropped, unless it comes from 192.0.2.0/24 or 198.51.100.0/24, as spec.loadBalancerSourceRanges asks

  Endpoints of shop/web:http/TCP, IPv4
  (endpoints hinted to this zone are used)
  ENDPOINT          POLICY CLUSTER                            POLICY LOCAL                              SLICE   TARGET           NODE   ZONE
  10.244.1.1:8080   yes                                       yes                                       web-1   Pod shop/web-a   n1     a
  10.244.2.2:8080   no: hinted to another zone                no: not on this node                      web-1   -                n2     -
  10.244.2.3        no: no port of the Service's, but a/TCP   no: no port of the Service's, but a/TCP   web-2   -                -      -

  Endpoints of shop/web:http/TCP, IPv6: no slice has any

On any node (no Node object is known, so neither are their zones):

  FRONTEND      KIND       FROM        A CONNECTION MEETS
  *:30080/TCP   NodePort   pod, node   refused at once: no endpoint is ready, here or on another node
  *:30080/TCP   NodePort   outside     dropped: endpoints are ready on other nodes only, and the traffic policy is Local

  Endpoints of shop/web:http/TCP, IPv4
  ENDPOINT          USED            SLICE   TARGET   NODE   ZONE
  10.244.2.4:8080   no: not ready   web-1   -        -      -

Problems:
  EndpointSlice shop/web-2: InvalidPort: ports[0].port: 0 is no port
`

func TestText(t *testing.T) {
	if diff := cmp.Diff(wholeText, report().Text("")); diff != "" {
		t.Errorf("want (-), got (+):\n%s", diff)
	}
}

// Of one origin the other origins' lines are left out, and nothing else is.
func TestTextOfOneOrigin(t *testing.T) {
	text := report().Text("outside")
	var got []string
	for line := range strings.Lines(text) {
		if fields := strings.Fields(line); len(fields) > 3 && strings.HasSuffix(fields[0], "/TCP") {
			got = append(got, fields[0]+" "+fields[2])
		}
	}
	want := []string{"10.96.0.10:80/TCP outside", "203.0.113.1:80/TCP outside", "203.0.113.1:80/TCP any", "*:30080/TCP outside"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("frontends and origins: want (-), got (+):\n%s", diff)
	}
	if strings.Count(text, "Endpoints of ") != 3 || !strings.Contains(text, "InvalidPort") {
		t.Errorf("ports or problems are missing in\n%s", text)
	}
}

func TestSourceRangesInWords(t *testing.T) {
	for _, test := range []struct {
		ranges []string
		want   string
	}{
		{nil, "dropped, from wherever it comes: no range of spec.loadBalancerSourceRanges can be read"},
		{[]string{"192.0.2.0/24"}, "dropped, unless it comes from 192.0.2.0/24, as spec.loadBalancerSourceRanges asks"},
	} {
		if got := outOfRange(test.ranges); got != test.want {
			t.Errorf("%v: got %q, want %q", test.ranges, got, test.want)
		}
	}
}

func TestNodesAreCountedWhereAListIsLong(t *testing.T) {
	nodes := strings.Split("a b c d e f g h i j", " ")
	for n, want := range map[int]string{1: "a", 8: "a, b, c, d, e, f, g, h", 10: "a, b, c, d, e, f, g, h and 2 more nodes"} {
		if got := viewers(nodes[:n]); got != want {
			t.Errorf("%d nodes: got %q, want %q", n, got, want)
		}
	}
}

func TestHintsInWords(t *testing.T) {
	at := netip.MustParseAddrPort("10.244.1.8:8080")
	for want, x := range map[string]translate.Explanation{
		"":                                       {},
		"endpoints hinted to this node are used": {Hints: translate.HintsForNode, ZoneHintsSwitchedOff: at},
		"endpoints hinted to this zone are used": {Hints: translate.HintsForZone, NodeHintsSwitchedOff: at},
		"hints for nodes are switched off by 10.244.1.8:8080, which is ready and has none": {NodeHintsSwitchedOff: at, ZoneHintsSwitchedOff: at},
		"hints for zones are switched off by 10.244.1.8:8080, which is ready and has none": {ZoneHintsSwitchedOff: at},
	} {
		if got := hints(x); got != want {
			t.Errorf("%+v: got %q, want %q", x, got, want)
		}
	}
}

// A Service's port finds those of slices by name and protocol, so a refusal names those that come near.
func TestRefusalsInWords(t *testing.T) {
	port := model.ServicePort{Service: model.ServiceKey{Namespace: "shop", Name: "web"}, Port: "http", Protocol: model.TCP}
	f := &model.Frontend{ServicePort: port, Family: model.IPv4}
	portOf := func(endpoints ...translate.EndpointUse) []translate.Explanation {
		return []translate.Explanation{{ServicePort: port, PortName: "http", Family: model.IPv4, Endpoints: endpoints}}
	}
	other := func(ports ...model.SlicePort) translate.EndpointUse {
		return translate.EndpointUse{Cluster: translate.NoSuchPort, SlicePorts: ports}
	}
	for name, test := range map[string]struct {
		ports []translate.Explanation
		want  string
	}{
		"no port is known":           {nil, "no slice of the Service has an IPv4 endpoint"},
		"no endpoint":                {portOf(), "no slice of the Service has an IPv4 endpoint"},
		"one that is not ready":      {portOf(translate.EndpointUse{Cluster: translate.NotReady}), "no endpoint is ready, here or on another node"},
		"one of two with the port":   {portOf(other(), translate.EndpointUse{Cluster: translate.Terminating}), "no endpoint is ready, here or on another node"},
		"slices without ports":       {portOf(other()), "the Service has the port http/TCP, but its slices have none"},
		"slices with another port":   {portOf(other(model.SlicePort{Name: "web", Protocol: model.TCP})), "the Service has the port http/TCP, but its slices have web/TCP; the names must be equal"},
		"each other port named once": {portOf(other(model.SlicePort{Protocol: model.UDP}), other(model.SlicePort{Protocol: model.UDP}, model.SlicePort{Name: "a", Protocol: model.TCP})), "the Service has the port http/TCP, but its slices have (unnamed)/UDP, a/TCP; the names must be equal"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := refusal(test.ports, f); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}
