package machine

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// restartDelay is how long a program that has ended stays so, as with systemd's Restart= in a node's unit files.
const restartDelay = time.Second

// A supervisor is what a machine's first process does.
type supervisor struct {
	config Config

	mu     sync.Mutex // Guards ended; held while a program starts, so that it cannot end unknown.
	ended  map[int]chan unix.WaitStatus
	failed chan error
}

func newSupervisor(c Config) *supervisor {
	return &supervisor{config: c, ended: map[int]chan unix.WaitStatus{}, failed: make(chan error, len(c.Programs)+1)}
}

// run returns when a program cannot be started.
func (s *supervisor) run() error {
	for _, p := range s.config.Programs {
		go func() { s.failed <- s.keepRunning(p) }()
	}
	go func() { s.failed <- s.collect() }()
	return fmt.Errorf("machine %s: %w", s.config.Name, <-s.failed)
}

// keepRunning starts the program whenever it does not run.
func (s *supervisor) keepRunning(p Program) error {
	again := time.NewTicker(restartDelay)
	defer again.Stop()
	for ; ; <-again.C {
		ended, err := s.start(p)
		if err != nil {
			return fmt.Errorf("start %s: %w", p.Name, err)
		}
		status := <-ended
		fmt.Fprintf(os.Stderr, "machine %s: %s has ended with status %d, signal %d\n", s.config.Name, p.Name, status.ExitStatus(), status.Signal())
	}
}

func (s *supervisor) start(p Program) (<-chan unix.WaitStatus, error) {
	log, err := os.OpenFile(filepath.Join(s.config.Dir, "log", p.Name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close() // The program has its own copy.
	s.mu.Lock()
	defer s.mu.Unlock()
	process, err := os.StartProcess(p.Args[0], p.Args, &os.ProcAttr{Env: os.Environ(), Files: []*os.File{nil, log, log}})
	if err != nil {
		return nil, err
	}
	ended := make(chan unix.WaitStatus, 1)
	s.ended[process.Pid] = ended
	return ended, process.Release()
}

// collect takes note of every child that ends: of the programs, and of processes whose parents have ended before them.
func (s *supervisor) collect() error {
	again := time.NewTicker(restartDelay / 10)
	defer again.Stop()
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ECHILD):
			<-again.C // All programs have just ended.
			continue
		case err != nil:
			return fmt.Errorf("wait: %w", err)
		}
		s.mu.Lock()
		if ended := s.ended[pid]; ended != nil {
			delete(s.ended, pid)
			ended <- status
		}
		s.mu.Unlock()
	}
}
