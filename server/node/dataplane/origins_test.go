package dataplane

import (
	"fmt"
	"testing"

	"github.com/fairlead/fairlead/translate/frontendpb"
)

// Whatever a control plane says of a frontend, also a newer one of a class that this agent does not know, the kernel takes it.
func TestEveryRouteCommits(t *testing.T) {
	routes := []*frontendpb.Route{
		nil, forwardKeep, forwardMasq, forwardExt, refused, dropped,
		{Verdict: frontendpb.Verdict_FORWARD}, {Verdict: frontendpb.Verdict_FORWARD, Class: 99}, {Verdict: 99, Class: frontendpb.Class_KEEP},
	}
	table := newTestTable(t)
	for i, pod := range routes {
		for j, outside := range routes {
			f := clusterIP(fmt.Sprintf("10.96.%d.%d", i, j), 80, "TCP")
			f.Pod, f.Node, f.Outside = pod, outside, outside
			table.SetFrontend(fmt.Sprint(i, j), f)
		}
	}
	if got := commit(t, table); len(got) != 2*len(routes)*len(routes) {
		t.Errorf("%d elements, want %d", len(got), 2*len(routes)*len(routes))
	}
}
