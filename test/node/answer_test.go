package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/fairlead/fairlead/server/lab"
)

// TestAnswersToNodePorts has a node, and a pod, ask a server outside from a port that is also a NodePort: the answers are
// theirs, and no Service's.
func TestAnswersToNodePorts(t *testing.T) {
	c := theCluster
	for _, p := range c.pairs {
		t.Run(p.String(), func(t *testing.T) {
			a := c.newApp(t, p)
			outside := p.outside[1]
			const port = 9353
			server, err := outside.ServeUDP("outside", port)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := server.Close(); err != nil {
					t.Error(err)
				}
			})
			for _, family := range families {
				to := netip.AddrPortFrom(addressOf(outside, family), port)
				for i := range 10 {
					if err := askFrom(t.Context(), p.nodes[0].Host, a.udp.nodePort(), to); err != nil {
						t.Fatalf("datagram %d of node %s to %s: %v", i, p.nodes[0].Name, to, err)
					}
				}
			}
		})
	}
}

// askFrom sends a datagram from a port of a host and waits for the answer.
func askFrom(ctx context.Context, h *lab.Host, port uint16, to netip.AddrPort) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	return h.Do(func() (err error) {
		dialer := net.Dialer{LocalAddr: &net.UDPAddr{Port: int(port)}}
		conn, err := dialer.DialContext(ctx, "udp", to.String())
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, conn.Close()) }()
		deadline, _ := ctx.Deadline()
		if err := conn.SetDeadline(deadline); err != nil {
			return err
		}
		if _, err := conn.Write([]byte("hello")); err != nil {
			return err
		}
		if _, err := conn.Read(make([]byte, 1500)); err != nil {
			return fmt.Errorf("no answer: %w", err)
		}
		return nil
	})
}
