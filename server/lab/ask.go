package lab

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// Network is how a client speaks to a server of this package.
type Network string

// The networks: those of ServeHTTP, ServeTCP, ServeUDP and ServeSCTP.
const (
	HTTP Network = "http"
	TCP  Network = "tcp"
	UDP  Network = "udp"
	SCTP Network = "sctp"
)

// Request is one exchange with a server of this package.
type Request struct {
	Network Network
	To      netip.AddrPort
	Size    int // Bytes to send, which must come back, beside the answer. HTTP and SCTP ignore it; one UDP datagram holds at most 65,507.
}

// Ask makes one exchange from the host, on a connection or socket of its own, and returns what the server said.
// [FailureOf] returns the kind of an error.
func (h *Host) Ask(ctx context.Context, r Request) (Answer, error) {
	var a Answer
	var err error
	switch r.Network {
	case HTTP:
		client := h.httpClient(false)
		a, err = askHTTP(ctx, client, r.To)
	case TCP, UDP:
		a, err = h.askSocket(ctx, r)
	case SCTP:
		a, err = h.askSCTP(ctx, r.To)
	default:
		err = fmt.Errorf("network %q is not http, tcp, udp or sctp", r.Network)
	}
	if err != nil {
		return Answer{}, fmt.Errorf("host %s asks %s over %s: %w", h.Name, r.To, r.Network, err)
	}
	return a, nil
}

// httpClient returns a client that dials from the host and, without keepAlive, makes a connection for each request.
func (h *Host) httpClient(keepAlive bool) *http.Client {
	return &http.Client{Transport: &http.Transport{DialContext: h.DialContext, DisableKeepAlives: !keepAlive}}
}

func askHTTP(ctx context.Context, client *http.Client, to netip.AddrPort) (Answer, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+to.String()+"/", nil)
	if err != nil {
		return Answer{}, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return Answer{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return Answer{}, err
	}
	if resp.StatusCode != http.StatusOK {
		return Answer{}, fmt.Errorf("status %s: %q", resp.Status, body)
	}
	return parseAnswer(string(body))
}

// askSocket makes one exchange with ServeTCP or ServeUDP. Over TCP the server speaks first.
func (h *Host) askSocket(ctx context.Context, r Request) (Answer, error) {
	conn, err := h.DialContext(ctx, string(r.Network), r.To.String())
	if err != nil {
		return Answer{}, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	a, err := exchange(conn, r)
	if err != nil && ctx.Err() != nil {
		return Answer{}, ctx.Err() // Otherwise FailureOf would report a closed connection.
	}
	return a, err
}

func exchange(conn net.Conn, r Request) (Answer, error) {
	sent := bytes.Repeat([]byte("fairlead"), r.Size/8+1)[:r.Size]
	if _, err := conn.Write(sent); err != nil {
		return Answer{}, err
	}
	// A datagram is read whole or cut, so the buffer must hold the largest.
	reader := bufio.NewReaderSize(conn, maxDatagram)
	line, err := reader.ReadString('\n')
	if err != nil {
		return Answer{}, err
	}
	back := make([]byte, r.Size)
	if r.Network == UDP {
		back = back[:min(r.Size, maxDatagram-len(line))]
	}
	if _, err := io.ReadFull(reader, back); err != nil {
		return Answer{}, err
	}
	if !bytes.Equal(back, sent[:len(back)]) {
		return Answer{}, fmt.Errorf("%d bytes came back changed", len(back))
	}
	return parseAnswer(line)
}

// Failure is a kind of failed exchange.
type Failure string

// The kinds.
const (
	Refused     Failure = "refused"     // TCP reset in answer to SYN, or ICMP port unreachable.
	Reset       Failure = "reset"       // An open connection was reset.
	Closed      Failure = "closed"      // An open connection was closed before the answer was complete.
	TimedOut    Failure = "timed out"   // No answer in time.
	Unreachable Failure = "unreachable" // ICMP host or network unreachable.
	Filtered    Failure = "filtered"    // The sender's own netfilter dropped or rejected the datagram.
	Other       Failure = "other"
)

// FailureOf returns the kind of an error of Ask; the empty kind for nil.
func FailureOf(err error) Failure {
	var network net.Error
	switch {
	case err == nil:
		return ""
	case errors.Is(err, unix.ECONNREFUSED):
		return Refused
	case errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EPIPE):
		return Reset
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return Closed
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded),
		errors.As(err, &network) && network.Timeout():
		return TimedOut
	case errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.ENETUNREACH):
		return Unreachable
	case errors.Is(err, unix.EPERM):
		return Filtered
	}
	return Other
}
