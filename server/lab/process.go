package lab

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"
)

// stopPatience is how long a process may take to end in order.
const stopPatience = 10 * time.Second

// Process is a program that runs in a host. It ends with this process at the latest.
type Process struct {
	Name string
	Log  string // The file with what it printed.

	cmd  *exec.Cmd
	done chan struct{} // Closed when it has ended.
}

// Run starts a program in the host, and appends its output to the log file. Errors contain the name.
func (h *Host) Run(name, log string, cmd *exec.Cmd) (*Process, error) {
	file, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("log of %s: %w", name, err)
	}
	defer file.Close() // The program has its own copy.
	cmd.Stdout, cmd.Stderr = file, file
	if err := h.Do(cmd.Start); err != nil {
		return nil, fmt.Errorf("start %s on host %s: %w", name, h.Name, err)
	}
	p := &Process{Name: name, Log: log, cmd: cmd, done: make(chan struct{})}
	go func() {
		defer close(p.done)
		_ = cmd.Wait() // How it ended is in cmd.ProcessState.
	}()
	return p, nil
}

// PID returns the process id in this world.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done returns a channel that is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Ended says how the process ended and where its log is; nil while it runs.
func (p *Process) Ended() error {
	select {
	case <-p.done:
		return fmt.Errorf("%s has ended: %s; its log is %s", p.Name, p.cmd.ProcessState, p.Log)
	default:
		return nil
	}
}

// Kill ends the process at once, as a crash does, and waits until it has ended.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill() // It fails only when the process has ended.
	<-p.done
}

// Stop asks the process to end and waits for it, for ten seconds at most before it kills it.
func (p *Process) Stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // It fails only when the process has ended.
	select {
	case <-p.done:
	case <-time.After(stopPatience):
		p.Kill()
	}
}
