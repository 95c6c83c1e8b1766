package realnode

import (
	"testing"
	"time"
)

// TestInstall installs Fairlead on one node by the README's commands in kube-proxy's place, and reaches a Service.
func TestInstall(t *testing.T) {
	c := newCluster(t, 1, bridgeMasquerading)
	flags, err := c.replaceFlags()
	if err != nil {
		t.Fatal(err)
	}
	took, err := c.install(t.Context(), flags...)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("helm install took %s", took.Round(100*time.Millisecond))
	if err := c.startDNS(t.Context()); err != nil {
		t.Fatal(err)
	}
	w := c.deploy(t, "web", 3)
	if err := c.startClients(t.Context()); err != nil {
		t.Fatal(err)
	}
	l := w.startLoads(c.nodes...)
	w.kubectl("rollout", "restart", "deployment/web")
	w.rolledOut()
	l.stop("rolling update")
}
