package splice

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/server/node/envoyns"
)

// A program is attached to a link's tcx hook by itself, not by a BPF link: it stays when the agent's process ends, as the nftables
// tables do, and ends with its network link. Nothing is pinned. An agent finds its predecessor's programs by their names, and the
// maps by the programs.
const (
	podName  = "fairlead_pod"
	keepName = "fairlead_keep"
)

// attached returns an earlier agent's or this one's program at a link's ingress; nil if there is none. The caller closes it.
func attached(index int) (*ebpf.Program, error) {
	there, err := link.QueryPrograms(link.QueryOptions{Target: index, Attach: ebpf.AttachTCXIngress})
	if gone(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list programs: %w", err)
	}
	for _, a := range there.Programs {
		p, err := ebpf.NewProgramFromID(a.ID)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("open program %d: %w", a.ID, err)
		}
		if info, err := p.Info(); err == nil && (info.Name == podName || info.Name == keepName) {
			return p, nil
		}
		_ = p.Close()
	}
	return nil, nil
}

// attach has a program run first at a link's ingress. The program of an earlier agent is replaced in one step, unless it is the same.
func attach(index int, p *ebpf.Program) error {
	old, err := attached(index)
	if err != nil {
		return err
	}
	options := link.RawAttachProgramOptions{Target: index, Program: p, Attach: ebpf.AttachTCXIngress, Anchor: link.Head()}
	if old != nil {
		defer old.Close()
		if same(old, p) {
			return nil
		}
		options.Anchor = link.ReplaceProgram(old)
	}
	if err := link.RawAttachProgram(options); err != nil && !gone(err) {
		return fmt.Errorf("attach to the tcx hook (Linux 6.6): %w", err)
	}
	return nil
}

// same reports whether two programs have the same instructions and maps.
func same(a, b *ebpf.Program) bool {
	x, errX := a.Info()
	y, errY := b.Info()
	if errX != nil || errY != nil || x.Tag != y.Tag {
		return false
	}
	of, _ := x.MapIDs()
	and, _ := y.MapIDs()
	return fmt.Sprint(of) == fmt.Sprint(and)
}

// detach removes our program from a link, if there is one.
func detach(index int) error {
	p, err := attached(index)
	if err != nil || p == nil {
		return err
	}
	defer p.Close()
	err = link.RawDetachProgram(link.RawDetachProgramOptions{Target: index, Program: p, Attach: ebpf.AttachTCXIngress})
	if err != nil && !gone(err) {
		return fmt.Errorf("detach: %w", err)
	}
	return nil
}

// gone reports whether an error says that a link, or a program on it, no longer exists.
func gone(err error) bool { return errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOENT) }

// Remove removes the programs, and with them the maps, from all links of the calling thread's network namespace. A kernel without BPF,
// or one that refuses it to this process, has none to remove.
func Remove() error {
	links, err := envoyns.Undisturbed(netlink.LinkList)
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	var errs []error
	for _, l := range links {
		if l.Type() != "veth" {
			continue
		}
		if err := detach(l.Attrs().Index); err != nil && !refused(err) {
			errs = append(errs, fmt.Errorf("splice: %s: %w", l.Attrs().Name, err))
		}
	}
	return errors.Join(errs...)
}

// refused reports whether the kernel has no tcx, or no BPF for this process.
func refused(err error) bool {
	return errors.Is(err, ebpf.ErrNotSupported) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS)
}

// earlierMaps returns the maps of the programs that an earlier agent left on the node's links.
func earlierMaps() ([]ebpf.MapID, error) {
	links, err := envoyns.Undisturbed(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	var ids []ebpf.MapID
	for _, l := range links {
		if l.Type() != "veth" {
			continue
		}
		p, err := attached(l.Attrs().Index)
		if err != nil {
			return nil, err
		}
		if p == nil {
			continue
		}
		if info, err := p.Info(); err == nil && strings.HasPrefix(info.Name, "fairlead_") {
			more, _ := info.MapIDs()
			ids = append(ids, more...)
		}
		_ = p.Close()
	}
	return ids, nil
}
