package clients

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fairlead/fairlead/server/lab"
)

// commands are how the clients are started, within their folder of .cache/clients.
var commands = map[string][]string{
	"go":     {"./client"},
	"python": {"venv/bin/python", "client.py"},
	"java":   {"java", "-cp", "target/classes:target/dependency/*", "Client"},
	"node":   {"node", "client.js"},
}

// numbersOnly are the languages whose clients cannot dial a port by its name. In Node.js it is no URL.
var numbersOnly = map[string]bool{"node": true}

// report is what came of a number of calls.
type report struct {
	Answers map[string]int `json:"answers"` // By backend.
	Errors  map[string]int `json:"errors"`  // By status code and message.
}

// program is a client that calls what it is told to. It is used by one goroutine.
type program struct {
	language string
	orders   io.Writer
	reports  *bufio.Reader
	log      string
}

// startProgram starts the client of a language with a bootstrap on a host.
func startProgram(t *testing.T, on *lab.Host, language, bootstrap string) *program {
	t.Helper()
	command := commands[language]
	if command == nil {
		t.Fatalf("there is no client in %q", language)
	}
	folder, err := filepath.Abs(filepath.Join("../../.cache/clients", language))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Dir = folder
	cmd.Env = append(os.Environ(), "GRPC_XDS_BOOTSTRAP="+bootstrap)
	log, err := os.CreateTemp(filepath.Dir(bootstrap), language+"-*.log")
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close() // The program has its own copy.
	cmd.Stderr = log
	orders, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	reports, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := on.Do(cmd.Start); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		orders.Close() // Ends the program.
		if err := cmd.Wait(); err != nil {
			t.Errorf("client in %s: %v; its log: %s", language, err, logOf(log.Name()))
		}
	})
	return &program{language: language, orders: orders, reports: bufio.NewReader(reports), log: log.Name()}
}

// channel is one target of a program, for one test.
type channel struct {
	*program
	t      *testing.T
	target string
}

// dial returns the program's channel to a target. The program opens it with the first call.
func (p *program) dial(t *testing.T, target string) channel { return channel{p, t, target} }

func logOf(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// order has the program make calls, one after the other.
func (c channel) order(calls int) (report, error) {
	var r report
	_, err := fmt.Fprintln(c.orders, calls, c.target)
	if err != nil {
		return r, err
	}
	line, err := c.reports.ReadBytes('\n')
	if err != nil {
		return r, err
	}
	return r, json.Unmarshal(line, &r)
}

// try makes calls that may fail.
func (c channel) try(calls int) report {
	c.t.Helper()
	r, err := c.order(calls)
	if err != nil {
		c.t.Fatalf("the client in %s has ended: %v; its log: %s", c.language, err, logOf(c.log))
	}
	return r
}

// call makes calls that have to succeed.
func (c channel) call(calls int) report {
	c.t.Helper()
	r := c.try(calls)
	if len(r.Errors) > 0 {
		c.t.Fatalf("calls failed: %v", r.Errors)
	}
	return r
}

// callUntil makes calls, 40 at a time, which have to succeed, until a condition holds for the last of them. It returns how
// long that took.
func (c channel) callUntil(what string, holds func(report) bool) time.Duration {
	c.t.Helper()
	start := time.Now()
	for {
		r := c.call(batch)
		if holds(r) {
			return time.Since(start)
		}
		if time.Since(start) > patience {
			c.t.Fatalf("not within %s: %s; the last calls: %v", patience, what, r.Answers)
		}
	}
}

// batch is a number of calls that can be shared evenly by one, two, four and five backends.
const batch = 40

// evenly is a condition: the backends of the names, and no others, have an equal share, give or take one call.
func evenly(names ...string) func(report) bool {
	return func(r report) bool {
		calls := 0
		for _, n := range r.Answers {
			calls += n
		}
		for _, name := range names {
			if share := calls / len(names); r.Answers[name] < share-1 || r.Answers[name] > share+1 {
				return false
			}
		}
		return len(r.Answers) == len(names)
	}
}

// wantErrorAtOnce makes a call that has to fail for want of the target, long before a client would give up waiting.
func (c channel) wantErrorAtOnce() {
	c.t.Helper()
	start := time.Now()
	r := c.try(1)
	took := time.Since(start)
	if len(r.Errors) != 1 || took > atOnce {
		c.t.Fatalf("after %s: %+v, want an error within %s", took, r, atOnce)
	}
	for text := range r.Errors {
		if !strings.HasPrefix(strings.ToUpper(text), "UNAVAILABLE: ") {
			c.t.Errorf("error %q, want UNAVAILABLE", text)
		}
		c.t.Logf("after %s: %s", took.Round(time.Millisecond), text)
	}
}

// atOnce is how long an error may take that needs no waiting. gRPC waits for 15 s for a resource that it is not sent, and a
// call of the clients for 10 s.
const atOnce = 3 * time.Second
