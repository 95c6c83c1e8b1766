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

// Conntrack is what the agent sets of the kernel's connection tracking, as kube-proxy does and with its defaults. Zero leaves a
// setting alone.
type Conntrack struct {
	MaxPerCore int // Connections that the kernel can track, for each core; it only ever raises what is set.
	Min        int // And at least.

	TCPEstablishedTimeout time.Duration // After which an idle connection is forgotten.
	TCPCloseWaitTimeout   time.Duration // And one that only one side has closed.
}

// DefaultConntrack is kube-proxy's. An hour of CLOSE_WAIT: a client may go on sending for long after the server has closed.
func DefaultConntrack() Conntrack {
	return Conntrack{MaxPerCore: 32 << 10, Min: 128 << 10, TCPEstablishedTimeout: 24 * time.Hour, TCPCloseWaitTimeout: time.Hour}
}

// maxTracked bounds what MaxPerCore leads to on machines with many cores: an entry takes some 300 bytes.
const maxTracked = 1 << 20

// limit returns how many connections the kernel should be able to track, or 0.
func (c Conntrack) limit(cores int) int {
	if c.MaxPerCore <= 0 {
		return 0
	}
	return min(max(c.MaxPerCore*cores, c.Min), max(maxTracked, c.Min))
}

// apply sets what is to be set in the network namespace of the calling thread. The limit is the machine's, and cannot be
// set where the node is itself a container.
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
