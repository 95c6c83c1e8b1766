package translate

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/translate/model"
)

// TestRoutes is the whole matrix: which endpoints serve, which source they see, and what happens where there are none.
// Each row gives what happens to pods, nodes and what is outside: the set (cluster or local) and p for a preserved or m
// for a masqueraded source; or the verdict without endpoints.
func TestRoutes(t *testing.T) {
	const (
		here      = "endpoints here and elsewhere"
		elsewhere = "endpoints elsewhere"
		nowhere   = "no endpoints"
	)
	external := []model.Kind{model.NodePort, model.LoadBalancer, model.ExternalIP}
	for _, row := range []struct {
		kinds     []model.Kind
		iTP, eTP  string // C or L; * is both.
		endpoints string
		want      string // From pod, node, outside.
	}{
		{[]model.Kind{model.ClusterIP}, "C", "*", here, "cluster p, cluster p, cluster m"},
		{[]model.Kind{model.ClusterIP}, "C", "*", elsewhere, "cluster p, cluster p, cluster m"},
		{[]model.Kind{model.ClusterIP}, "C", "*", nowhere, "refuse, refuse, refuse"},
		{[]model.Kind{model.ClusterIP}, "L", "*", here, "local p, local p, local m"},
		{[]model.Kind{model.ClusterIP}, "L", "*", elsewhere, "drop, drop, drop"},
		{[]model.Kind{model.ClusterIP}, "L", "*", nowhere, "refuse, refuse, refuse"},
		{external, "*", "C", here, "cluster m, cluster m, cluster m"},
		{external, "*", "C", elsewhere, "cluster m, cluster m, cluster m"},
		{external, "*", "C", nowhere, "refuse, refuse, refuse"},
		{external, "*", "L", here, "cluster p, cluster m, local p"},
		{external, "*", "L", elsewhere, "cluster p, cluster m, drop"},
		{external, "*", "L", nowhere, "refuse, refuse, refuse"},
	} {
		for _, kind := range row.kinds {
			for _, iTP := range expand(row.iTP) {
				for _, eTP := range expand(row.eTP) {
					s := &model.Service{InternalTrafficPolicy: iTP, ExternalTrafficPolicy: eTP}
					given := sets{
						cluster:  &model.EndpointSet{Name: "cluster"},
						local:    &model.EndpointSet{Name: "local"},
						anywhere: row.endpoints != nowhere,
					}
					if row.endpoints != nowhere {
						given.cluster.Endpoints = make([]model.Endpoint, 2)
					}
					if row.endpoints == here {
						given.local.Endpoints = make([]model.Endpoint, 1)
					}
					var got []string
					for _, r := range routes(s, kind, given) {
						got = append(got, routeText(r))
					}
					if got := strings.Join(got, ", "); got != row.want {
						t.Errorf("%s, internal policy %s, external policy %s, %s: got %q, want %q", kind, iTP, eTP, row.endpoints, got, row.want)
					}
				}
			}
		}
	}
}

func expand(policies string) []model.TrafficPolicy {
	switch policies {
	case "C":
		return []model.TrafficPolicy{model.Cluster}
	case "L":
		return []model.TrafficPolicy{model.Local}
	default:
		return []model.TrafficPolicy{model.Cluster, model.Local}
	}
}

func routeText(r model.Route) string {
	if r.Verdict == model.Forward {
		return fmt.Sprintf("%s %c", r.Set.Name, r.Source[0])
	}
	return string(r.Verdict)
}

func TestSetsAreNamedAndShared(t *testing.T) {
	w := NewWorld()
	s := testService("web", "10.96.0.1", "fd00::1")
	s.Ports[0].NodePort = 30080
	s.ExternalTrafficPolicy = model.Local
	s.LoadBalancerIPs = []netip.Addr{netip.MustParseAddr("203.0.113.1")}
	w.Set(serviceObject(s))
	w.Set(sliceObject(testSlice(t, "web-1", "web", "1 ready on=n1", "2 ready on=n2")))
	plan := w.Plan(s.Key)
	frontends := plan.Frontends(plan.Variant(model.View{Node: "n1"}))
	byName := map[string]*model.EndpointSet{}
	var got []string
	for _, f := range frontends {
		for _, r := range f.Routes {
			if shared := byName[r.Set.Name]; shared != nil && shared != r.Set {
				t.Errorf("%s: set %s exists twice", f.Name(), r.Set.Name)
			}
			byName[r.Set.Name] = r.Set
		}
		got = append(got, fmt.Sprintf("%s %s %s", f.Name(), f.Routes[model.FromPod].Set.Name, f.Routes[model.FromOutside].Set.Name))
	}
	want := []string{
		"10.96.0.1:80/TCP default/web:http/TCP default/web:http/TCP",
		"203.0.113.1:80/TCP default/web:http/TCP default/web:http/TCP/local",
		"[fd00::1]:80/TCP default/web:http/TCP/ipv6 default/web:http/TCP/ipv6",
		"*:30080/TCP default/web:http/TCP default/web:http/TCP/local",
		"[*]:30080/TCP default/web:http/TCP/ipv6 default/web:http/TCP/ipv6/local",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("sets (-want +got):\n%s", diff)
	}
}
