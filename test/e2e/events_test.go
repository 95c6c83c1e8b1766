package e2e

import (
	"fmt"
	"strings"
)

// contested is two Services that want the same external IP, which the API server allows.
const contested = `{apiVersion: v1, kind: Service, metadata: {name: %s, namespace: default, labels: {service.kubernetes.io/service-proxy-name: fairlead}},
spec: {externalIPs: [198.51.100.77], ports: [{port: 80}]}}
`

// events has what kubectl describe shows say what is wrong with a Service, and that it is over, and which nodes do not forward: those
// on which this release has no agent. The control plane has no more rights than the chart gives it.
func (h helm) events() {
	h.t.Helper()
	for _, name := range []string{"has-it", "wants-it"} {
		if _, err := h.cluster.kube.kubectl(fmt.Sprintf(contested, name), "apply", "-f", "-"); err != nil {
			h.t.Fatal(err)
		}
	}
	h.described("service", "wants-it", "DuplicateFrontend")
	if _, err := h.cluster.kube.kubectl("", "delete", "service", "has-it"); err != nil {
		h.t.Fatal(err)
	}
	h.described("service", "wants-it", "ProblemSolved")
	if _, err := h.cluster.kube.kubectl("", "delete", "service", "wants-it"); err != nil {
		h.t.Fatal(err)
	}
	h.described("node", h.cluster.nodes[0].Name, "FairleadNoAgent")
	out, err := h.cluster.kube.kubectl("", "describe", "node", h.nodes[0].Name)
	if err != nil || strings.Contains(out, "FairleadNoAgent") {
		h.t.Errorf("%v; a node that has its agent is described as\n%s", err, out)
	}
}

// described waits until kubectl describe shows an Event with a reason, once.
func (h helm) described(kind, name, reason string) {
	h.t.Helper()
	h.eventually(func() error {
		out, err := h.cluster.kube.kubectl("", "describe", kind, name)
		if err == nil && strings.Count(out, reason+" ") != 1 {
			err = fmt.Errorf("not once %s in\n%s", reason, out)
		}
		return err
	})
}
