// Package clients proves that unmodified gRPC programs balance over a Service's endpoints without a proxy: grpc-go,
// and gRPC in Python (the C++ core), Java and Node.js, against a control plane and backends in network namespaces.
//
// By default the tests are made with grpc-go alone; -clients names others. Their programs are made by setup.sh.
package clients

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fairlead/fairlead/server/lab"
)

// preparedVariable tells the copy of this process that runs the tests where the binary under test is. All is made
// outside, where packages can still be downloaded.
const preparedVariable = "FAIRLEAD_CLIENTS_TEST_BINARY"

// patience bounds every wait for a condition.
const patience = 30 * time.Second

var languages = flag.String("clients", "go", "the clients to test with: go, python, java and node, separated by commas")

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	flag.Parse()
	if os.Getenv(preparedVariable) == "" {
		dir, err := os.MkdirTemp("", "fairlead-clients-binary-")
		if err != nil {
			return fail(err)
		}
		defer os.RemoveAll(dir)
		if err := prepare(filepath.Join(dir, "fairlead")); err != nil {
			return fail(err)
		}
	}
	code, err := lab.Isolated(m.Run)
	if err != nil {
		return fail(err)
	}
	return code
}

func fail(err error) int {
	fmt.Fprintln(os.Stderr, "gRPC clients:", err)
	return 1
}

// prepare makes the binary under test and the clients.
func prepare(binary string) error {
	for _, cmd := range []*exec.Cmd{
		exec.Command("go", "build", "-C", "../..", "-o", binary, "./cmd/fairlead"),
		exec.Command("./setup.sh", strings.Split(*languages, ",")...),
	} {
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", cmd, err, out)
		}
	}
	return os.Setenv(preparedVariable, binary)
}

// withPatience returns a context for one wait.
func withPatience(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}
