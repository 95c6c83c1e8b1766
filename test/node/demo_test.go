package node

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fairlead/fairlead/server/lab/fleet"
)

// demo returns the command of the demo, which keeps its files in a folder of the test's.
func demo(t *testing.T, folder string) *exec.Cmd {
	t.Helper()
	envoy, err := fleet.FindEnvoy("../..")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(theCluster.binary, "demo", "--envoy", envoy)
	cmd.Dir = "../.."
	cmd.Env = append(os.Environ(), "TMPDIR="+folder)
	return cmd
}

func nothingLeft(t *testing.T, folder string) {
	t.Helper()
	left, err := os.ReadDir(folder)
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

// TestDemo runs the demo, in a world of its own inside this one. It proves that the quickstart's manifests do what its
// README says.
func TestDemo(t *testing.T) {
	folder := t.TempDir()
	out, err := demo(t, folder).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if !strings.Contains(string(out), "All of it worked.") {
		t.Errorf("it succeeds without saying so:\n%s", out)
	}
	nothingLeft(t, folder)
}

// firstStep is written when the demo is under way.
const firstStep = "1. "

// watcher closes a channel when a text has been written to it.
type watcher struct {
	text string
	all  bytes.Buffer
	seen chan struct{}
	done bool
}

// Write implements io.Writer.
func (w *watcher) Write(b []byte) (int, error) {
	n, err := w.all.Write(b)
	if !w.done && strings.Contains(w.all.String(), w.text) {
		w.done = true
		close(w.seen)
	}
	return n, err
}

// TestDemoInterrupted ends the demo in the middle: it cleans up and says that it did not finish.
func TestDemoInterrupted(t *testing.T) {
	for _, signal := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		t.Run(signal.String(), func(t *testing.T) {
			folder := t.TempDir()
			cmd := demo(t, folder)
			out := &watcher{text: firstStep, seen: make(chan struct{})}
			cmd.Stdout, cmd.Stderr = out, out
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			select {
			case <-out.seen:
			case <-time.After(patience):
				_ = cmd.Process.Kill()
				t.Fatalf("no first step after %s", patience)
			}
			if err := cmd.Process.Signal(signal); err != nil {
				t.Fatal(err)
			}
			var exit *exec.ExitError
			if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 130 {
				t.Errorf("got %v, want exit code 130:\n%s", err, &out.all)
			}
			nothingLeft(t, folder)
		})
	}
}

// TestDemoFails names the folder of the logs when something does not work, and keeps it.
func TestDemoFails(t *testing.T) {
	folder := t.TempDir()
	cmd := demo(t, folder)
	cmd.Args = append(cmd.Args, "--manifests", t.TempDir())
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(string(out), folder) || !strings.Contains(string(out), "two") {
		t.Errorf("got %v, want exit code 1, the reason and the folder of the logs:\n%s", err, out)
	}
}
