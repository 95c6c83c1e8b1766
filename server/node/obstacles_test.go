package node

import (
	"context"
	"log/slog"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/fairlead/fairlead/translate/model"
)

// masquerade is a CNI's masquerade that takes the source of connections to Envoy.
const masquerade = "table ip cni {\nchain p {\ntype nat hook postrouting priority 80;\noifname \"uplink\" masquerade\n}\n}\n"

// nftables has nft carry out commands.
func nftables(t *testing.T, commands string) {
	t.Helper()
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(commands)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("nft: %v: %s", err, out)
	}
}

// names reports whether one of the problems is about source NAT.
func names(problems []model.Problem) bool {
	for _, p := range problems {
		if p.Reason == model.HostObstacle && strings.HasPrefix(p.Message, "source-nat: chain ip cni p ") && strings.Contains(p.Message, "; fix: ") {
			return true
		}
	}
	return false
}

// What comes in the way is found while the agent runs, and so is that it is gone.
func TestWatchHost(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	found, ended := make(chan []model.Problem), make(chan error, 1)
	watching, stop := context.WithCancel(ctx)
	go func() { ended <- watchHost(watching, "n1", 10*time.Millisecond, found, slog.New(slog.DiscardHandler)) }()
	await := func(want bool) {
		t.Helper()
		for {
			select {
			case problems := <-found:
				if names(problems) == want {
					return
				}
			case <-ctx.Done():
				t.Fatalf("not found out in time that there is a masquerade: %t", want)
			}
		}
	}
	nftables(t, masquerade)
	t.Cleanup(func() { _ = exec.Command("nft", "delete", "table", "ip", "cni").Run() }) // It is gone unless the test fails.
	await(true)
	nftables(t, "delete table ip cni\n")
	await(false)
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// The agent's status and the control plane hear of what was in the way before the agent began.
func TestObstacleIsReported(t *testing.T) {
	nftables(t, masquerade)
	t.Cleanup(func() { nftables(t, "delete table ip cni\n") })
	l := newLoop(t)
	l.eventually("the masquerade is reported", func() bool {
		return names(l.reported().Problems) && names(l.agent.Status().Problems)
	})
}
