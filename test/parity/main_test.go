// Package parity compares Fairlead with kube-proxy, in nftables mode and of the release that go.mod names: random clusters, and
// for each connection that a client may make what either of them does with it.
//
// kube-proxy is not imitated: its own code makes its own rules, and a model of nftables (ruleset_test.go) follows a packet
// through them. Where Fairlead means to differ is said once, in translate/README.md; differences_test.go has a rule for each
// row there, and a difference that no rule explains fails the test.
package parity

import (
	"flag"
	"fmt"
	"os"
	"testing"

	"github.com/go-logr/logr"
	"k8s.io/klog/v2"

	"github.com/fairlead/fairlead/server/lab"
)

var (
	routes = flag.Int("routes", 100_000, "how many routes to compare: what happens to a connection from one source to one frontend")
	seed   = flag.Uint64("seed", 1, "of the first random cluster, the next one's being one more; 0: another one each time")
)

// TestMain runs the tests in network namespaces of their own: kube-proxy lists the kernel's tables and its connections.
func TestMain(m *testing.M) {
	klog.SetLogger(logr.Discard()) // kube-proxy logs each object that is wrong, and many are.
	code, err := lab.Isolated(m.Run)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(code)
}
