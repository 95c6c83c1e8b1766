package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// namespaceDir is where `ip netns` and its kin look for named namespaces.
const namespaceDir = "/run/netns"

// validName keeps names fit for a file and a log line.
var validName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$`)

// Host is one machine or pod of the lab: a network namespace with one interface, eth0. Its methods may be called from
// any goroutine.
type Host struct {
	Name       string
	IPv4, IPv6 netip.Addr

	lab    *Lab
	ns     *os.File
	nl     *netlink.Handle
	port   string          // The other end of eth0 …
	portIn *netlink.Handle // … and the namespace that it is in.
	number int             // A pod's number, and its node.
	node   *Node

	adopted bool // The namespace is not the lab's.

	servers []io.Closer // Guarded by lab.mu.
}

// newHost makes an empty namespace with loopback up. Caller holds l.mu.
func (l *Lab) newHost(name string) (*Host, error) {
	if !validName.MatchString(name) {
		return nil, fmt.Errorf("host %q: a name has lower-case letters, digits, dashes and dots", name)
	}
	if l.hosts[name] != nil {
		return nil, fmt.Errorf("host %s: the lab already has one of that name", name)
	}
	ns, err := newNamespace(filepath.Join(namespaceDir, name))
	if err != nil {
		return nil, fmt.Errorf("host %s: %w", name, err)
	}
	h := &Host{Name: name, lab: l, ns: ns}
	l.hosts[name] = h
	if h.nl, err = netlink.NewHandleAt(netns.NsHandle(ns.Fd())); err != nil {
		return nil, errors.Join(fmt.Errorf("host %s: netlink: %w", name, err), l.remove(h))
	}
	if err := h.Do(hostSysctls.set); err != nil {
		return nil, errors.Join(fmt.Errorf("host %s: %w", name, err), l.remove(h))
	}
	return h, nil
}

// newNamespace makes a network namespace and names it by a file.
func newNamespace(path string) (ns *os.File, err error) {
	err = onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("new network namespace: %w", err)
		}
		if ns, err = currentNamespace(); err != nil {
			return err
		}
		return bind(path)
	})
	if err != nil && ns != nil {
		err = errors.Join(err, ns.Close())
	}
	return ns, err
}

// onThread runs f on a thread of its own, which is back in its network namespace afterwards.
//
// A thread that cannot go back stays locked to the goroutine, so that no other finds itself in a strange network. To let
// threads end in namespaces instead would not do: a process's first thread cannot end, and would keep one alive.
func onThread(f func() error) (err error) {
	runtime.LockOSThread()
	before, err := currentNamespace()
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer func() {
		back := enter(before)
		if back == nil {
			runtime.UnlockOSThread()
		}
		err = errors.Join(err, back, before.Close())
	}()
	return f()
}

// bind gives the calling thread's network namespace a name that nsenter and `ip netns` can use.
func bind(path string) error {
	if err := os.WriteFile(path, nil, 0o444); err != nil {
		return fmt.Errorf("name the namespace: %w", err)
	}
	if err := unix.Mount(threadNamespace, path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("name the namespace %s: %w", path, err)
	}
	return nil
}

// threadNamespace is the network namespace of the calling thread.
const threadNamespace = "/proc/thread-self/ns/net"

func currentNamespace() (*os.File, error) {
	f, err := os.Open(threadNamespace)
	if err != nil {
		return nil, fmt.Errorf("open the network namespace: %w", err)
	}
	return f, nil
}

// enter moves the calling thread. It is safe against a concurrent Close of the file, which makes it fail.
func enter(ns *os.File) error {
	conn, err := ns.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	if err := conn.Control(func(fd uintptr) { set = unix.Setns(int(fd), unix.CLONE_NEWNET) }); err != nil {
		return err
	}
	return os.NewSyscallError("setns", set)
}

// Do runs f on a thread that is inside the host's network. Sockets that f opens, and processes that it starts, belong
// to the host and stay there; goroutines that f starts do not. To run a program in the host: h.Do(cmd.Start), or
// h.Do(cmd.Run).
func (h *Host) Do(f func() error) error {
	return onThread(func() error {
		if err := enter(h.ns); err != nil {
			return fmt.Errorf("enter host %s: %w", h.Name, err)
		}
		return f()
	})
}

// DialContext connects from the host. The address must be literal: names are looked up by other goroutines, which are
// not in the host. It suits http.Transport.
func (h *Host) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	if _, err := netip.ParseAddrPort(address); err != nil {
		return nil, fmt.Errorf("dial from host %s: %w", h.Name, err)
	}
	var conn net.Conn
	err := h.Do(func() (err error) {
		conn, err = new(net.Dialer).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// Listen opens a listening socket in the host, as net.Listen does. The caller closes it.
func (h *Host) Listen(network, address string) (net.Listener, error) {
	var l net.Listener
	err := h.Do(func() (err error) {
		l, err = net.Listen(network, address)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("host %s: %w", h.Name, err)
	}
	return l, nil
}

// ListenPacket opens a packet socket in the host, as net.ListenPacket does. The caller closes it.
func (h *Host) ListenPacket(network, address string) (net.PacketConn, error) {
	var c net.PacketConn
	err := h.Do(func() (err error) {
		c, err = net.ListenPacket(network, address)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("host %s: %w", h.Name, err)
	}
	return c, nil
}

// AddAddress gives the host one more address on eth0, as a single address without a network.
func (h *Host) AddAddress(a netip.Addr) error {
	eth0, err := h.nl.LinkByName("eth0")
	if err == nil {
		err = addAddress(h.nl, eth0, netip.PrefixFrom(a, a.BitLen()))
	}
	if err != nil {
		return fmt.Errorf("host %s: %w", h.Name, err)
	}
	return nil
}

// AddRoute sends what the host has for a prefix to a neighbour, as an outside router does with the addresses of a load
// balancer. An existing route for the prefix is replaced.
func (h *Host) AddRoute(prefix netip.Prefix, via netip.Addr) error {
	eth0, err := h.nl.LinkByName("eth0")
	if err == nil {
		err = addRoute(h.nl, eth0, prefix, via)
	}
	if err != nil {
		return fmt.Errorf("host %s: %w", h.Name, err)
	}
	return nil
}

// Port returns the name of the interface at the other end of the host's eth0; a pod's is in its node.
func (h *Host) Port() string { return h.port }

// Delete ends the host's servers, and a node's pods, cuts it off and removes it. Deleting it twice is no error; any
// other use of it afterwards is.
func (h *Host) Delete() error {
	h.lab.mu.Lock()
	defer h.lab.mu.Unlock()
	if h.adopted {
		return h.forget()
	}
	return h.lab.remove(h)
}

// destroy undoes newHost and the link. Caller holds lab.mu.
func (h *Host) destroy() error {
	var errs []error
	for _, s := range h.servers {
		errs = append(errs, s.Close())
	}
	if h.port != "" {
		// Deleted by name: namespaces are torn down in the background, and a successor may want the name at once.
		if link, err := h.portIn.LinkByName(h.port); err == nil {
			errs = append(errs, h.portIn.LinkDel(link))
		}
	}
	if h.nl != nil {
		h.nl.Close()
	}
	path := filepath.Join(namespaceDir, h.Name)
	errs = append(errs, unix.Unmount(path, unix.MNT_DETACH), os.Remove(path), h.ns.Close())
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove host %s: %w", h.Name, err)
	}
	return nil
}
