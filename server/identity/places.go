package identity

import (
	"context"
	"net"
	"sync"

	"google.golang.org/grpc/peer"
)

// places counts the new tokens of each address that are being reviewed, or wait for it. It is safe for concurrent use.
type places struct {
	mu sync.Mutex // Guards what follows.
	of map[string]int
}

// enter takes a place of an address, unless there are none left.
func (p *places) enter(address string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.of[address] == maxReviewsOfAddress {
		return false
	}
	p.of[address]++
	return true
}

// leave returns it.
func (p *places) leave(address string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.of[address]--; p.of[address] == 0 {
		delete(p.of, address)
	}
}

// addressOf returns the address that an RPC comes from, without its port.
func addressOf(ctx context.Context) string {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return ""
	}
	host, _, err := net.SplitHostPort(p.Addr.String())
	if err != nil {
		return p.Addr.String()
	}
	return host
}
