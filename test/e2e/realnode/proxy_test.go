package realnode

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// startKubeProxy runs kube-proxy on every node as clusters do, by a DaemonSet.
func (c *cluster) startKubeProxy(ctx context.Context, mode string) error {
	text, err := os.ReadFile(filepath.Join("testdata", "kube-proxy.yaml"))
	if err != nil {
		return err
	}
	values := strings.NewReplacer("MODE", mode, "POD_CIDRS", c.network.pods(), "API_SERVER", c.kube.keys.server)
	if err := c.kube.apply(ctx, values.Replace(string(text))); err != nil {
		return err
	}
	_, err = c.kube.kubectl(ctx, "-n", "kube-system", "rollout", "status", "daemonset/kube-proxy", "--timeout", patience.String())
	return err
}

// stopKubeProxy ends kube-proxy and removes what it has left on the nodes, as an administrator does who replaces it.
func (c *cluster) stopKubeProxy(ctx context.Context) error {
	if _, err := c.kube.kubectl(ctx, "-n", "kube-system", "delete", "daemonset", "kube-proxy", "--cascade=foreground"); err != nil {
		return err
	}
	for _, n := range c.nodes {
		if _, err := n.command(ctx, c.program("kube-proxy"), "--cleanup"); err != nil {
			return fmt.Errorf("kube-proxy --cleanup: %w", err)
		}
	}
	return nil
}
