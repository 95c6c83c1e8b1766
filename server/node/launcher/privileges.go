package launcher

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// dropPrivileges drops every capability of the calling thread but CAP_NET_ADMIN, which applies to its network namespace only;
// exec passes the thread's privileges on. With a user other than 0 the thread takes that user and group.
func dropPrivileges(user int) error {
	for capability := 0; ; capability++ {
		if capability == unix.CAP_NET_ADMIN {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(capability), 0, 0, 0); err == unix.EINVAL {
			break // Past the last capability that this kernel knows.
		} else if err != nil {
			return fmt.Errorf("drop capability %d: %w", capability, err)
		}
	}
	if user != 0 {
		if err := becomeUser(user); err != nil {
			return err
		}
	}
	only := uint32(1) << unix.CAP_NET_ADMIN
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := [2]unix.CapUserData{{Effective: only, Permitted: only, Inheritable: only}}
	if err := unix.Capset(&header, &data[0]); err != nil {
		return fmt.Errorf("keep only CAP_NET_ADMIN: %w", err)
	}
	// The capabilities of a thread whose user is not root survive exec only as ambient ones.
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, unix.CAP_NET_ADMIN, 0, 0); err != nil {
		return fmt.Errorf("pass CAP_NET_ADMIN on: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("forbid new privileges: %w", err)
	}
	return nil
}

// becomeUser changes the calling thread's user and group, and keeps its capabilities. It makes the system calls directly: the
// library's functions change every thread, and only this one calls exec.
func becomeUser(user int) error {
	if err := unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("keep capabilities: %w", err)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, 0, 0, 0); errno != 0 {
		return fmt.Errorf("give up supplementary groups: %w", errno)
	}
	id := uintptr(user)
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, id, id, id); errno != 0 {
		return fmt.Errorf("become group %d: %w", user, errno)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, id, id, id); errno != 0 {
		return fmt.Errorf("become user %d: %w", user, errno)
	}
	return nil
}
