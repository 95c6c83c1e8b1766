// Package packets asks two clusters the same questions with packets. In one, kube-proxy in nftables mode forwards, in the other
// Fairlead: its control plane, an agent and an Envoy on each node. Both have the same API server, and nodes, pods and hosts of
// the same names and addresses, each in namespaces of its own. Each cell of the matrix is a client that dials a Service in one
// way; what counts is which endpoints answer, whom they see, and whether a connection is refused or dropped.
//
// Where Fairlead means to differ is said once, in translate/README.md; differences_test.go has a rule for each row there that
// packets can show. A cell that differs without one fails the test.
package packets

import (
	"flag"
	"fmt"
	"os"
	"testing"

	"github.com/fairlead/fairlead/server/lab"
)

var (
	matrix = flag.String("matrix", "", "file to write the matrix to, if all Services are tried and no difference is without a reason")
	most   = flag.Int("services", 0, "try a sample of this many Services; 0: all of them")
	seed   = flag.Uint64("seed", 1, "of the sample; 0: another one each time")
	keep   = flag.Bool("keep", false, "keep the logs also when the test passes")
)

// TestMain runs the tests in network namespaces of their own.
func TestMain(m *testing.M) {
	code, err := lab.Isolated(m.Run)
	if err != nil {
		fmt.Fprintln(os.Stderr, "packets:", err)
	}
	os.Exit(code)
}
