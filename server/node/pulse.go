package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/fairlead/fairlead/server/node/envoyns"
	"github.com/fairlead/fairlead/translate/frontendpb"
)

// Times of the watch over Envoys that run. The kernel completes connections to an Envoy that hangs, until the backlog of its
// listeners is full, so that it takes one that reads to notice.
const (
	pulseInterval = 250 * time.Millisecond
	pulseTimeout  = 750 * time.Millisecond
	// pulsesMissed is after how many probes without an answer in succession an Envoy counts as hung: within 2 s.
	pulsesMissed = 2
)

// pulse is what one round of probes has found.
type pulse map[envoyns.ID]bool

// watchEnvoys probes the node's Envoys and hands each round to the reconciler, until ctx ends.
func (r *reconciler) watchEnvoys(ctx context.Context) error {
	ticker := time.NewTicker(pulseInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		select {
		case <-ctx.Done():
			return nil
		case r.pulses <- feel(ctx, r.status.Load().Generations):
		}
	}
}

// feel probes Envoys at once.
func feel(ctx context.Context, ids []envoyns.ID) pulse {
	found := pulse{}
	var mutex sync.Mutex
	var probes sync.WaitGroup
	for _, id := range ids {
		probes.Go(func() {
			answered := answers(ctx, id)
			mutex.Lock()
			defer mutex.Unlock()
			found[id] = answered
		})
	}
	probes.Wait()
	return found
}

// answers reports whether an Envoy answers a connection: it closes one to an address that is no Service's. A connection that is
// refused or reset is an answer, too.
func answers(ctx context.Context, id envoyns.ID) bool {
	ctx, cancel := context.WithTimeout(ctx, pulseTimeout)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", envoyns.ProbeAddresses(id, frontendpb.Class_KEEP)[0].String())
	if err == nil {
		defer conn.Close()
		deadline, _ := ctx.Deadline()
		if err = conn.SetReadDeadline(deadline); err == nil {
			_, err = io.ReadFull(conn, make([]byte, 1))
		}
	}
	return !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, context.DeadlineExceeded)
}

// feel takes in a round of probes. While the current Envoy hangs, another that answers takes the new connections.
func (i *instances) feel(found pulse) {
	for _, id := range i.live {
		answered, probed := found[id]
		switch {
		case !probed:
		case answered:
			if i.hangs(id) {
				i.log.Info("an Envoy instance answers again", "generation", id)
			}
			delete(i.missed, id)
		default:
			if i.missed[id]++; i.missed[id] == pulsesMissed {
				i.log.Error("an Envoy instance hangs: it answers no connection", "generation", id, "current", id == i.current)
			}
		}
	}
	for id := range i.missed {
		if !slices.Contains(i.live, id) {
			delete(i.missed, id)
		}
	}
}

// hangs reports whether an Envoy has not answered for a while.
func (i *instances) hangs(id envoyns.ID) bool { return i.missed[id] >= pulsesMissed }

// hung returns an error if the current Envoy hangs.
func (i *instances) hung() error {
	if i.current == 0 || !i.hangs(i.current) {
		return nil
	}
	return fmt.Errorf("the node's only Envoy, generation %d, hangs: it answers no connection; end it, so that its container starts anew", i.current)
}
