package node

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// Conntrack is the agent's settings of the kernel's connection tracking, as kube-proxy has them. The agent does not change a
// setting that is zero.
type Conntrack struct {
	MaxPerCore int // Connections that the kernel can track, for each core; the agent only raises the limit.
	Min        int // The least limit, whatever MaxPerCore.

	TCPEstablishedTimeout time.Duration // After which the kernel forgets an idle connection.
	TCPCloseWaitTimeout   time.Duration // After which it forgets one that only one side has closed.
}

// DefaultConntrack returns kube-proxy's defaults. CLOSE_WAIT lasts an hour: a client may go on sending long after the server has
// closed.
func DefaultConntrack() Conntrack {
	return Conntrack{MaxPerCore: 32 << 10, Min: 128 << 10, TCPEstablishedTimeout: 24 * time.Hour, TCPCloseWaitTimeout: time.Hour}
}

// maxTracked bounds the limit by MaxPerCore on machines with many cores: an entry takes some 300 bytes.
const maxTracked = 1 << 20

// limit returns how many connections the kernel should be able to track, or 0.
func (c Conntrack) limit(cores int) int {
	if c.MaxPerCore <= 0 {
		return 0
	}
	return min(max(c.MaxPerCore*cores, c.Min), max(maxTracked, c.Min))
}

// apply writes the settings in the network namespace of the calling thread. The limit is the machine's, and an agent on a node
// that is itself a container cannot set it.
func (c Conntrack) apply() error {
	var errs []error
	if limit := c.limit(runtime.NumCPU()); limit > 0 {
		if now, err := readConntrack("max"); err == nil && now < limit {
			errs = append(errs, writeConntrack("max", limit))
		}
	}
	for name, timeout := range map[string]time.Duration{
		"tcp_timeout_established": c.TCPEstablishedTimeout, "tcp_timeout_close_wait": c.TCPCloseWaitTimeout,
	} {
		if seconds := int(timeout / time.Second); seconds > 0 {
			if now, err := readConntrack(name); err != nil || now != seconds {
				errs = append(errs, writeConntrack(name, seconds))
			}
		}
	}
	return errors.Join(errs...)
}

func conntrackPath(name string) string { return "/proc/sys/net/netfilter/nf_conntrack_" + name }

func readConntrack(name string) (int, error) {
	content, err := os.ReadFile(conntrackPath(name))
	if err != nil {
		return 0, fmt.Errorf("read sysctl: %w", err)
	}
	return strconv.Atoi(strings.TrimSpace(string(content)))
}

func writeConntrack(name string, value int) error {
	if err := os.WriteFile(conntrackPath(name), []byte(strconv.Itoa(value)), 0o644); err != nil {
		return fmt.Errorf("set sysctl nf_conntrack_%s to %d: %w", name, value, err)
	}
	return nil
}
