package lab

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// visitorVariable makes this test binary a visitor of its own world instead of running tests.
const visitorVariable = "FAIRLEAD_LAB_TEST_VISITOR"

// visit is what runs inside: it tells what it sees, starts a process, and stays until it is told to go.
func visit() int {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT)
	child := exec.Command("sleep", "3600")
	if err := child.Start(); err != nil {
		fmt.Println(err)
		return 1
	}
	run, _ := filepath.Glob("/run/*")
	fmt.Printf("pid %d, outside %d, run %v\n", os.Getpid(), outsidePID(), run)
	if os.Getenv(visitorVariable) == "leave" {
		return 7
	}
	return 40 + int((<-signals).(syscall.Signal))
}

// visitor starts this test binary as one that calls Isolated, and returns it with the first line that it prints.
func visitor(t *testing.T, manner string) (*exec.Cmd, string) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), visitorVariable+"="+manner)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() }) // Does nothing after an orderly end.
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return cmd, line
}

// descendants returns the processes whose ancestor is pid, by what /proc says of parents.
func descendants(t *testing.T, pid int) []int {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	var found []int
	for _, path := range stats {
		stat, err := os.ReadFile(path)
		if err != nil {
			continue // It has ended.
		}
		_, rest, _ := strings.Cut(string(stat), ") ")
		if fields := strings.Fields(rest); len(fields) > 1 && fields[1] == strconv.Itoa(pid) {
			child, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			if err != nil {
				t.Fatal(err)
			}
			found = append(append(found, child), descendants(t, child)...)
		}
	}
	return found
}

func TestIsolated(t *testing.T) {
	for _, tc := range []struct {
		manner string
		signal syscall.Signal
		want   int
	}{
		{"leave", 0, 7},
		{"stay", unix.SIGTERM, 40 + int(unix.SIGTERM)},
		{"stay", unix.SIGINT, 40 + int(unix.SIGINT)},
		{"stay", unix.SIGKILL, -1},
	} {
		t.Run(fmt.Sprintf("%s %s", tc.manner, tc.signal), func(t *testing.T) {
			cmd, line := visitor(t, tc.manner)
			inside := descendants(t, cmd.Process.Pid)
			var pid, outside int
			if _, err := fmt.Sscanf(line, "pid %d, outside %d, run [/run/netns]", &pid, &outside); err != nil || pid != 1 {
				t.Errorf("the world is not its own: %q", line)
			}
			if tc.signal != 0 {
				if len(inside) != 2 || inside[0] != outside {
					t.Errorf("processes of the world: %v, want the visitor %d and its child", inside, outside)
				}
				if err := cmd.Process.Signal(tc.signal); err != nil {
					t.Fatal(err)
				}
			}
			err := cmd.Wait()
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.ExitCode() != tc.want {
				t.Errorf("got %v, want exit code %d", err, tc.want)
			}
			awaitEnd(t, inside)
		})
	}
}

// awaitEnd waits until none of the processes is left.
func awaitEnd(t *testing.T, pids []int) {
	t.Helper()
	poll := time.NewTicker(time.Millisecond)
	defer poll.Stop()
	for _, pid := range pids {
		for end := time.Now().Add(patience); unix.Kill(pid, 0) == nil && !zombie(pid); <-poll.C {
			if time.Now().After(end) {
				t.Fatalf("process %d of the world outlived it", pid)
			}
		}
	}
}

// zombie reports whether a process is dead and only waits to be asked how it ended.
func zombie(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, rest, _ := strings.Cut(string(stat), ") ")
	return err == nil && strings.HasPrefix(rest, "Z")
}

func TestNewNeedsIsolation(t *testing.T) {
	t.Setenv(worldVariable, "")
	if _, err := New(); err == nil || !strings.Contains(err.Error(), "Isolated") {
		t.Errorf("got error %v, want one that names Isolated", err)
	}
}

func TestForbiddenNamesTheRemedy(t *testing.T) {
	err := forbidden(&os.PathError{Op: "fork/exec", Path: "/proc/self/exe", Err: unix.EPERM})
	if !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "run as root") || strings.Contains(err.Error(), "\n") {
		t.Errorf("got %q, want one line that says how to allow namespaces", err)
	}
}
