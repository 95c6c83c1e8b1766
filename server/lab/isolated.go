package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// worldVariable is how a program finds out whether it is inside: unset outside, worldEntering for the copy that is
// about to settle in, and afterwards the process id of that copy as the outside sees it, for nsenter.
const (
	worldVariable = "FAIRLEAD_LAB"
	worldEntering = "entering"
)

// Isolated runs f in a world of its own and returns what f returned.
//
// It starts this program again, with the same arguments, in new user, network, mount and process namespaces, where
// the call is reached a second time and runs f. Inside, the process is root over its own namespaces only, /run is
// empty, /proc shows only this world, and there is no network but loopback. The copy is process 1 of its process
// namespace: when it ends, in whatever way, the kernel kills all that it started, and the namespaces go with them.
// The copy dies with the outer process and gets its signals.
//
// As root the user namespace is left out. Where namespaces are forbidden the error says in one line how to allow them.
// Call it first thing in main or TestMain.
func Isolated(f func() int) (int, error) {
	if os.Getenv(worldVariable) != worldEntering {
		return reexec()
	}
	if err := settle(); err != nil {
		return 1, forbidden(err)
	}
	return f(), nil
}

// reexec starts the copy and waits for it.
func reexec() (int, error) {
	// The copy's death signal is tied to the thread that started it, which must therefore live as long as this call.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT)
	defer signal.Stop(signals)

	cmd, err := start(os.Geteuid() != 0)
	if err != nil && os.Geteuid() == 0 {
		cmd, err = start(true) // Root without CAP_SYS_ADMIN, as in a container, may still have user namespaces.
	}
	if err != nil {
		return 1, forbidden(err)
	}
	ended := make(chan struct{})
	defer close(ended)
	go func() {
		for {
			select {
			case s := <-signals:
				_ = cmd.Process.Signal(s) // It fails only when the copy has ended, which Wait reports.
			case <-ended:
				return
			}
		}
	}()
	if err := cmd.Wait(); err != nil && cmd.ProcessState == nil {
		return 1, fmt.Errorf("wait for the isolated copy of this program: %w", err)
	}
	if status := cmd.ProcessState.Sys().(syscall.WaitStatus); status.Signaled() {
		return 128 + int(status.Signal()), nil
	}
	return cmd.ProcessState.ExitCode(), nil
}

func start(newUser bool) (*exec.Cmd, error) {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), worldVariable+"="+worldEntering)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID,
		Pdeathsig:  unix.SIGKILL,
		// In a process group of its own the copy and its children get a terminal's Ctrl-C from us alone, once, and
		// the copy can stop its children in order.
		Setpgid: true,
	}
	if newUser {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	return cmd, cmd.Start()
}

// settle makes the new namespaces habitable: nothing mounted here is seen outside.
func settle() error {
	self, err := os.Readlink("/proc/self") // Still the outside's /proc, hence the outside's number.
	if err != nil {
		return err
	}
	if err := os.Setenv(worldVariable, self); err != nil {
		return err
	}
	if err := unix.Mount("none", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return fmt.Errorf("mount /run: %w", err)
	}
	return os.MkdirAll(namespaceDir, 0o755)
}

// outsidePID returns the process id of the world's first process as the outside sees it; 0 when this is no such world.
func outsidePID() int {
	pid, err := strconv.Atoi(os.Getenv(worldVariable))
	if err != nil {
		return 0
	}
	return pid
}

// forbidden explains an error of making namespaces by the setting of this machine that forbids them.
func forbidden(err error) error {
	for _, denial := range []error{unix.EPERM, unix.EACCES, unix.ENOSPC, unix.EUSERS, unix.EINVAL} {
		if errors.Is(err, denial) {
			return fmt.Errorf("no namespaces for an isolated network (%w): %s", err, remedy())
		}
	}
	return fmt.Errorf("isolated network: %w", err)
}

func remedy() string {
	for _, s := range []struct{ name, forbids, allow string }{
		{"kernel/apparmor_restrict_unprivileged_userns", "1", "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"},
		{"kernel/unprivileged_userns_clone", "0", "sysctl -w kernel.unprivileged_userns_clone=1"},
		{"user/max_user_namespaces", "0", "sysctl -w user.max_user_namespaces=10000"},
	} {
		value, err := os.ReadFile("/proc/sys/" + s.name)
		if err == nil && strings.TrimSpace(string(value)) == s.forbids {
			return "run as root, or allow them with: " + s.allow
		}
	}
	return "run as root, and in a container with --privileged"
}
