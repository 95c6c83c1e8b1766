// Command container becomes a program as a container runtime starts it: with a root file system of its own, the
// volumes of its pod, the capabilities and the user that the pod's spec gives it, and nothing else of the machine.
//
//	container -root DIR [-bin FILE]... [-mount SOURCE:TARGET[:ro]]... [-cap NAME]... [flags] -- COMMAND [ARGUMENT]...
//
// Whoever starts it gives it new mount and process namespaces and the network namespace that it is to be in. There are no
// images: the root has the machine's programs and libraries, read-only, and in /opt/bin those that are named.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// capabilities are those that a pod of these tests may ask for.
var capabilities = map[string]uintptr{
	"NET_ADMIN": unix.CAP_NET_ADMIN, "SYS_ADMIN": unix.CAP_SYS_ADMIN, "SETUID": unix.CAP_SETUID, "SETGID": unix.CAP_SETGID, "SETPCAP": unix.CAP_SETPCAP,
}

// container is what to become.
type container struct {
	root                 string // An empty folder.
	bins, mounts, caps   []string
	privileged, readOnly bool
	user                 int
	command              []string
}

func main() {
	log.SetFlags(0)
	log.SetPrefix("container: ")
	runtime.LockOSThread() // Capabilities are a thread's, and exec passes this one's on.
	c := container{}
	list := func(name string, to *[]string) {
		flag.Func(name, "may be repeated", func(v string) error { *to = append(*to, v); return nil })
	}
	list("bin", &c.bins)
	list("mount", &c.mounts)
	list("cap", &c.caps)
	flag.StringVar(&c.root, "root", "", "empty folder")
	flag.BoolVar(&c.privileged, "privileged", false, "all capabilities, /proc/sys writable")
	flag.BoolVar(&c.readOnly, "read-only", false, "read-only root file system")
	flag.IntVar(&c.user, "user", 0, "user and group")
	flag.Parse()
	c.command = flag.Args()
	log.Fatal(c.become())
}

// become returns only with an error.
func (c container) become() error {
	if len(c.command) == 0 {
		return errors.New("no command")
	}
	if err := c.buildRoot(); err != nil {
		return fmt.Errorf("root file system: %w", err)
	}
	if err := errors.Join(syscall.Chroot(c.root), os.Chdir("/")); err != nil {
		return err
	}
	path, err := exec.LookPath(c.command[0])
	if err != nil {
		return err
	}
	if err := c.dropPrivileges(); err != nil {
		return fmt.Errorf("privileges: %w", err)
	}
	return syscall.Exec(path, c.command, os.Environ())
}

func (c container) buildRoot() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", c.root, "tmpfs", 0, "mode=755"); err != nil {
		return err
	}
	if err := c.addSystem(); err != nil {
		return err
	}
	for _, file := range c.bins {
		if err := c.bind(file, "/opt/bin/"+filepath.Base(file), true); err != nil {
			return err
		}
	}
	for _, m := range c.mounts {
		source, rest, _ := strings.Cut(m, ":")
		target, mode, _ := strings.Cut(rest, ":")
		if err := c.bind(source, target, mode == "ro"); err != nil {
			return err
		}
	}
	if !c.readOnly {
		return nil
	}
	return unix.Mount("", c.root, "", unix.MS_REMOUNT|unix.MS_RDONLY, "mode=755")
}

// addSystem adds programs, libraries, devices, and the processes of this process namespace.
func (c container) addSystem() error {
	for _, path := range []string{
		"/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache", "/dev/null", "/dev/zero", "/dev/random", "/dev/urandom",
	} {
		info, err := os.Lstat(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil:
			return err
		case info.Mode()&fs.ModeSymlink != 0:
			to, err := os.Readlink(path)
			if err := errors.Join(err, os.Symlink(to, c.root+path)); err != nil {
				return err
			}
		default:
			if err := c.bind(path, path, !strings.HasPrefix(path, "/dev/")); err != nil {
				return err
			}
		}
	}
	proc := c.root + "/proc"
	if err := errors.Join(os.Mkdir(proc, 0o755), unix.Mount("proc", proc, "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")); err != nil {
		return err
	}
	if c.privileged {
		return nil
	}
	return c.bind(proc+"/sys", "/proc/sys", true) // As container runtimes have it.
}

// bind shows a file or folder of the machine at a path in the container.
func (c container) bind(source, target string, readOnly bool) error {
	info, err := os.Stat(source)
	if err != nil {
		return err
	}
	target = c.root + target
	folder := target
	if !info.IsDir() {
		folder = filepath.Dir(target)
	}
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	if !info.IsDir() {
		if err := os.WriteFile(target, nil, 0o644); err != nil {
			return err
		}
	}
	if err := unix.Mount(source, target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("mount %s at %s: %w", source, target, err)
	}
	if !readOnly {
		return nil
	}
	return unix.Mount("", target, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, "")
}

// dropPrivileges leaves the thread what the container may have: of root's capabilities those in the bounding set survive
// exec, of another user's none.
func (c container) dropPrivileges() error {
	if c.privileged {
		return nil
	}
	var keep []uintptr
	for _, name := range c.caps {
		number, ok := capabilities[name]
		if !ok {
			return fmt.Errorf("no capability %q", name)
		}
		keep = append(keep, number)
	}
	for number := uintptr(0); ; number++ {
		if slices.Contains(keep, number) {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, number, 0, 0, 0); errors.Is(err, unix.EINVAL) {
			break // Past the last one that this kernel knows.
		} else if err != nil {
			return err
		}
	}
	if c.user == 0 {
		return nil
	}
	return errors.Join(syscall.Setgroups(nil), syscall.Setgid(c.user), syscall.Setuid(c.user))
}
