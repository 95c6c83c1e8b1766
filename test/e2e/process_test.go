package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/fairlead/fairlead/server/lab"
)

// process is a program that runs inside one of the lab's hosts. What it prints is appended to a log file of its name.
type process struct {
	name string
	cmd  *exec.Cmd
	done chan struct{} // Closed when the program has ended.
}

// run starts a command in a host. Whoever starts it stops it; what is left over ends with this process, which is the
// first of its process namespace.
func (c *cluster) run(in *lab.Host, name string, cmd *exec.Cmd) (*process, error) {
	log, err := os.OpenFile(filepath.Join(c.dir, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close() // The program has its own copy.
	p := &process{name: name, cmd: cmd, done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = log, log
	if err := in.Do(p.cmd.Start); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		defer close(p.done)
		_ = p.cmd.Wait() // How it ended is in cmd.ProcessState.
	}()
	return p, nil
}

// kill ends the program with SIGKILL and waits until it is gone.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // It fails only when the program has ended.
	<-p.done
}

// stop asks the program to end and waits for it, with force after ten seconds.
func (p *process) stop() {
	_ = p.cmd.Process.Signal(os.Interrupt)
	select {
	case <-p.done:
	case <-time.After(10 * time.Second):
		p.kill()
	}
}

// ended says how the program ended; nil while it runs.
func (p *process) ended() error {
	select {
	case <-p.done:
		return fmt.Errorf("%s has ended: %s", p.name, p.cmd.ProcessState)
	default:
		return nil
	}
}
