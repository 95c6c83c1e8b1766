// Package machine makes a process the first of a node: with its own view of mounts, processes and control groups, as the
// init of a machine has it, it starts the programs that a node runs, starts them again when they end, and collects the processes that nobody waits for.
//
// It needs root and works on cgroup v1 and v2. Whoever starts the process gives it new mount, process, UTS and IPC
// namespaces and the network namespace that it is to be in; when it ends, the kernel ends all that it started.
package machine

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// Argument is the name that a program is called by to become a machine; see [Command].
const Argument = "fairlead-machine"

// Config is what the machine is.
type Config struct {
	Name     string            // Its host name.
	Dir      string            // Its disk: a folder that outlives it.
	Cgroup   string            // The name of its control group, below the one of whoever starts it.
	Folders  map[string]string // Folders of Dir, and where the machine sees them.
	Files    map[string]string // Files' contents, by where the machine sees them; the files must exist outside.
	Programs []Program
}

// Program is started with the machine, and again when it ends. What it prints goes to Dir/log/NAME.log.
type Program struct {
	Name string
	Args []string
}

// Command returns the arguments to call this program with, as the file /proc/self/exe, and writes the config for it.
func Command(c Config) ([]string, error) {
	text, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	file := filepath.Join(c.Dir, "machine.json")
	if err := errors.Join(os.MkdirAll(filepath.Join(c.Dir, "log"), 0o755), os.WriteFile(file, text, 0o644)); err != nil {
		return nil, err
	}
	return []string{Argument, "enter", file}, nil
}

// Become returns only with an error. Call it first thing in main, on the thread
// that the process began with, when the program was called as Command says.
func Become(args []string) error {
	runtime.LockOSThread() // A namespace is a thread's.
	if len(args) != 3 {
		return fmt.Errorf("%s: want a stage and a file, got %q", Argument, args)
	}
	text, err := os.ReadFile(args[2])
	if err != nil {
		return err
	}
	var c Config
	if err := json.Unmarshal(text, &c); err != nil {
		return fmt.Errorf("%s: %w", args[2], err)
	}
	if args[1] == "enter" {
		if err := enterCgroup(c.Cgroup); err != nil {
			return fmt.Errorf("machine %s: control group: %w", c.Name, err)
		}
		// Only this thread is in the new namespace, and exec makes it the only one.
		return unix.Exec("/proc/self/exe", []string{args[0], "run", args[2]}, os.Environ())
	}
	if err := c.mount(); err != nil {
		return fmt.Errorf("machine %s: %w", c.Name, err)
	}
	return newSupervisor(c).run()
}
