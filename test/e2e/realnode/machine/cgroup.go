package machine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

const cgroupRoot = "/sys/fs/cgroup"

// v1Controllers are the hierarchies that containerd and the kubelet want on cgroup v1.
var v1Controllers = []string{"cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "systemd"}

// unified says whether the machine's control groups are v2 only.
func unified() (bool, error) {
	var stat unix.Statfs_t
	if err := unix.Statfs(cgroupRoot, &stat); err != nil {
		return false, fmt.Errorf("%s: %w", cgroupRoot, err)
	}
	return stat.Type == unix.CGROUP2_SUPER_MAGIC, nil
}

// enterCgroup puts the process into a control group below its own, so that limits on whoever started it still hold, and
// makes that the root of what it sees.
func enterCgroup(name string) error {
	groups, err := own(name)
	if err != nil {
		return err
	}
	for hierarchy, group := range groups {
		if err := os.MkdirAll(group, 0o755); err != nil {
			return err
		}
		if hierarchy == "cpuset" {
			if err := inheritCPUs(group); err != nil {
				return err
			}
		}
		if err := os.WriteFile(filepath.Join(group, "cgroup.procs"), []byte("0"), 0o644); err != nil {
			return err
		}
	}
	return unix.Unshare(unix.CLONE_NEWCGROUP)
}

// inheritCPUs makes a v1 cpuset usable: it starts with no processor.
func inheritCPUs(group string) error {
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		value, err := os.ReadFile(filepath.Join(filepath.Dir(group), file))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(group, file), value, 0o644); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(group, "cgroup.clone_children"), []byte("1"), 0o644)
}

// own returns the folders of a group of that name below the process's own, by hierarchy; v2's has no name.
func own(name string) (map[string]string, error) {
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	v2, err := unified()
	if err != nil {
		return nil, err
	}
	groups := map[string]string{}
	for line := range strings.Lines(string(text)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) != 3 {
			return nil, fmt.Errorf("/proc/self/cgroup: %q", line)
		}
		switch hierarchy := strings.TrimPrefix(parts[1], "name="); {
		case v2:
			groups[""] = filepath.Join(cgroupRoot, parts[2], name)
		case hierarchy != "":
			for _, controller := range strings.Split(hierarchy, ",") {
				folder := filepath.Join(cgroupRoot, controller)
				if _, err := os.Stat(folder); err == nil {
					groups[controller] = filepath.Join(folder, parts[2], name)
				}
			}
		}
	}
	return groups, nil
}

// RemoveCgroup removes a machine's control groups, which its processes no longer use. Those that are gone are no error.
func RemoveCgroup(name string) error {
	groups, err := own(name)
	if err != nil {
		return err
	}
	var errs []error
	for _, group := range groups {
		errs = append(errs, removeGroup(group))
	}
	return errors.Join(errs...)
}

// removeGroup removes a group after those below it.
func removeGroup(group string) error {
	entries, err := os.ReadDir(group)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !e.IsDir() {
			continue // The kernel's own files.
		}
		if err := removeGroup(filepath.Join(group, e.Name())); err != nil {
			return err
		}
	}
	return os.Remove(group)
}

// mountCgroups shows the machine its own control groups. It is called where /sys is new and has none.
func mountCgroups(v2 bool) error {
	if v2 {
		if err := unix.Mount("cgroup2", cgroupRoot, "cgroup2", 0, ""); err != nil {
			return err
		}
		return delegate()
	}
	if err := unix.Mount("tmpfs", cgroupRoot, "tmpfs", 0, "mode=755"); err != nil {
		return err
	}
	for _, c := range v1Controllers {
		options := c
		if c == "systemd" {
			options = "none,name=systemd"
		}
		folder := filepath.Join(cgroupRoot, c)
		if err := os.Mkdir(folder, 0o755); err != nil {
			return err
		}
		if err := unix.Mount("cgroup", folder, "cgroup", 0, options); err != nil && c != "systemd" {
			return fmt.Errorf("hierarchy %s: %w", c, err)
		}
	}
	return nil
}

// delegate lets the machine's groups use its controllers: v2 allows that only where no process is in the group itself.
func delegate() error {
	leaf := filepath.Join(cgroupRoot, "init")
	if err := os.Mkdir(leaf, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(leaf, "cgroup.procs"), []byte("0"), 0o644); err != nil {
		return err
	}
	controllers, err := os.ReadFile(filepath.Join(cgroupRoot, "cgroup.controllers"))
	if err != nil {
		return err
	}
	for _, c := range strings.Fields(string(controllers)) {
		if err := os.WriteFile(filepath.Join(cgroupRoot, "cgroup.subtree_control"), []byte("+"+c), 0o644); err != nil {
			return fmt.Errorf("controller %s: %w", c, err)
		}
	}
	return nil
}
