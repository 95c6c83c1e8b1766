// Package realnode runs Fairlead on a Kubernetes cluster whose nodes are real: the kubelet, containerd, runc and CNI plugins,
// each node in namespaces of its own, and Fairlead installed by the README's commands from its chart and its images.
package realnode

import (
	"context"
	"flag"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/fairlead/fairlead/server/lab"
	"github.com/fairlead/fairlead/test/e2e/realnode/machine"
)

var (
	conformance = flag.Bool("conformance", false, "run Kubernetes' own tests of sig-network, and nothing else")
	allNetworks = flag.Bool("networks", false, "run TestNetworks, and nothing else")
	proxy       = flag.String("proxy", "fairlead", "with -conformance: whom to test, fairlead or kube-proxy")
	update      = flag.Bool("update", false, "with -conformance: write the results into CONFORMANCE.md instead of comparing")
	dir         = flag.String("dir", "", "folder for the nodes' disks and all logs; default: a new one in .cache/e2e/realnode")
)

func TestMain(m *testing.M) {
	if os.Args[0] == machine.Argument {
		fmt.Fprintln(os.Stderr, machine.Become(os.Args))
		os.Exit(1)
	}
	flag.Parse()
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "realnode: nodes mount file systems and run containers of several users: run as root")
		os.Exit(1)
	}
	code, err := lab.Isolated(m.Run)
	if err != nil {
		fmt.Fprintln(os.Stderr, "realnode:", err)
	}
	os.Exit(code)
}

// patience bounds the waits for what takes a cluster seconds, on a busy machine.
const patience = 2 * time.Minute

// eventually asks a condition again and again until it holds, ctx ends, or patience does; then it says what is missing.
func eventually(ctx context.Context, condition func() error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	started := time.Now()
	for {
		err := condition()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("after %s: %w", time.Since(started).Round(time.Millisecond), err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}
