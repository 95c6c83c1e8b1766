package machine

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// wholeMachine are settings that the kubelet makes for the kernel as a whole. The machine is shown that they are as the
// kubelet wants them, so that the real ones are left alone.
var wholeMachine = map[string]string{
	"vm/overcommit_memory":      "1",
	"vm/panic_on_oom":           "0",
	"kernel/panic":              "10",
	"kernel/panic_on_oops":      "1",
	"kernel/keys/root_maxkeys":  "1000000",
	"kernel/keys/root_maxbytes": "25000000",
}

// mount makes the mounts of a machine. Nothing of it is seen outside.
func (c Config) mount() error {
	v2, err := unified()
	if err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(c.Name)); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	for _, m := range []struct{ kind, target, options string }{
		{"proc", "/proc", ""},
		{"sysfs", "/sys", ""},
		{"tmpfs", "/run", "mode=755"},
	} {
		if err := unix.Mount(m.kind, m.target, m.kind, 0, m.options); err != nil {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	if err := mountCgroups(v2); err != nil {
		return fmt.Errorf("control groups: %w", err)
	}
	for folder, target := range c.Folders {
		source := filepath.Join(c.Dir, folder)
		if err := os.MkdirAll(source, 0o755); err != nil {
			return err
		}
		if err := os.MkdirAll(target, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount %s: %w", target, err)
		}
	}
	for name, value := range wholeMachine {
		if err := c.show("/proc/sys/"+name, value+"\n"); err != nil {
			return err
		}
	}
	for name, content := range c.Files {
		if err := c.show(name, content); err != nil {
			return err
		}
	}
	// The kubelet and containers exchange mounts.
	return unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, "")
}

// show puts a file of its own in the place of one of the outside's.
func (c Config) show(target, content string) error {
	folder := filepath.Join(c.Dir, "files")
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	file := filepath.Join(folder, strings.ReplaceAll(strings.Trim(target, "/"), "/", "-"))
	if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
		return err
	}
	if err := unix.Mount(file, target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount %s: %w", target, err)
	}
	return nil
}
