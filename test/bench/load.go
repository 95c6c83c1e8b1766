package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/server/lab"
)

// patience is how long an exchange under load waits for its answer.
const patience = 5 * time.Second

// A load is a fixed number of exchanges from one host, made by several workers at a time. Its sockets block, each worker
// on a thread of its own, so that what is measured is the path and not Go's scheduler.
type load struct {
	from    *lab.Host
	to      []netip.AddrPort // Worker n talks to the one of number n modulo their number.
	network lab.Network      // TCP or UDP.
	workers int
	total   int
	keep    bool // One connection or flow for each worker, kept; otherwise one for each exchange.
}

// A sample is what came of loads.
type sample struct {
	seconds   float64
	cpu       float64 // Seconds of all processors that were not idle.
	latencies []time.Duration
}

// cost returns the processors' time for an exchange in nanoseconds, the client's and the server's included.
func (s sample) cost() float64 { return s.cpu / float64(len(s.latencies)) * 1e9 }

func (s sample) rate() float64 { return float64(len(s.latencies)) / s.seconds }

// quantile returns the latency that the fraction q of exchanges did not exceed.
func (s sample) quantile(q float64) time.Duration {
	if len(s.latencies) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(s.latencies))
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}

// run makes the exchanges. One that fails fails the load: a path that loses connections is not measured but mended.
func (l load) run() (sample, error) {
	var (
		work    sync.WaitGroup
		mu      sync.Mutex // Guards the following.
		result  sample
		failure error
	)
	start, busy := time.Now(), busySeconds()
	for n := range l.workers {
		work.Go(func() {
			var latencies []time.Duration
			err := l.from.Do(func() (err error) {
				latencies, err = l.work(l.to[n%len(l.to)], l.total/l.workers)
				return err
			})
			mu.Lock()
			defer mu.Unlock()
			result.latencies = append(result.latencies, latencies...)
			failure = errors.Join(failure, err)
		})
	}
	work.Wait()
	result.seconds, result.cpu = time.Since(start).Seconds(), busySeconds()-busy
	return result, failure
}

// busySeconds returns how long the processors have not been idle, summed over them. What else the machine does counts, too.
func busySeconds() float64 {
	const ticks = 100 // A second has so many, whatever the kernel's own clock.
	line, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0
	}
	var user, nice, system, idle, wait, irq, softirq float64
	if _, err := fmt.Sscanf(string(line), "cpu %f %f %f %f %f %f %f", &user, &nice, &system, &idle, &wait, &irq, &softirq); err != nil {
		return 0
	}
	return (user + nice + system + irq + softirq) / ticks
}

// work is one worker's part.
func (l load) work(to netip.AddrPort, count int) ([]time.Duration, error) {
	latencies := make([]time.Duration, 0, count)
	if l.keep {
		c, err := connect(l.network, to, patience)
		if err != nil {
			return nil, err
		}
		defer c.close()
		for range count {
			start := time.Now()
			if err := c.exchange(); err != nil {
				return nil, fmt.Errorf("request to %s: %w", to, err)
			}
			latencies = append(latencies, time.Since(start))
		}
		return latencies, nil
	}
	for range count {
		start := time.Now()
		c, err := connect(l.network, to, patience)
		if err != nil {
			return nil, err
		}
		latencies = append(latencies, time.Since(start))
		c.close()
	}
	return latencies, nil
}

// A connection is a blocking socket to a server of lab.ServeTCP or lab.ServeUDP, over IPv4.
type connection struct {
	fd      int
	network lab.Network
	server  string // Who answered.
	buffer  [512]byte
}

// connect opens a connection from the calling thread's network and reads the server's greeting: only then is it sure that
// the server has it, since a proxy accepts before it connects. A flow of datagrams begins with the first one and its answer.
// The timeout is for each of the two steps.
func connect(network lab.Network, to netip.AddrPort, timeout time.Duration) (*connection, error) {
	kind := unix.SOCK_STREAM
	if network == lab.UDP {
		kind = unix.SOCK_DGRAM
	}
	fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", to, err)
	}
	c := &connection{fd: fd, network: network}
	limit := unix.NsecToTimeval(timeout.Nanoseconds())
	err = errors.Join(
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit), // It limits connect too.
	)
	if network == lab.TCP {
		err = errors.Join(err, unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1))
	}
	if err == nil {
		// Linux goes on with an interrupted attempt when it is asked again.
		err = uninterrupted(func() error {
			return unix.Connect(fd, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())})
		})
	}
	if err == nil && network == lab.UDP {
		err = c.send()
	}
	n := 0
	if err == nil {
		n, err = c.read()
	}
	if err != nil {
		c.close()
		return nil, fmt.Errorf("connect to %s: %w", to, err)
	}
	c.server, _, _ = strings.Cut(string(c.buffer[:n]), " ")
	return c, nil
}

func (c *connection) close() { _ = unix.Close(c.fd) }

// requestSize is the size of a request in bytes.
const requestSize = 64

// send sends a small request.
func (c *connection) send() error {
	request := [requestSize]byte{}
	_, err := unix.Write(c.fd, request[:])
	return err
}

// exchange sends a small request and reads the answer: of the same size, or a datagram with a line before it.
func (c *connection) exchange() error {
	if err := c.send(); err != nil {
		return err
	}
	for got := 0; got < requestSize; {
		n, err := c.read()
		if err != nil {
			return err
		}
		got += n
	}
	return nil
}

// read reads once and takes the end of the connection for an error: nothing here ends one before its client.
func (c *connection) read() (n int, err error) {
	err = uninterrupted(func() (err error) {
		n, err = unix.Read(c.fd, c.buffer[:])
		return err
	})
	if err == nil && n == 0 {
		err = errors.New("closed by the other side")
	}
	return n, err
}

// uninterrupted makes a system call until it has not been interrupted: the signals of Go's scheduler do that to calls on
// sockets with a timeout.
func uninterrupted(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
