package node

import (
	"testing"
	"time"

	"github.com/fairlead/fairlead/server/lab"
)

func TestConntrackLimit(t *testing.T) {
	for _, test := range []struct{ perCore, min, cores, want int }{
		{32768, 131072, 2, 131072},
		{32768, 131072, 16, 524288},
		{32768, 131072, 128, 1048576},
		{0, 131072, 16, 0},
		{32768, 2000000, 2, 2000000},
	} {
		if got := (Conntrack{MaxPerCore: test.perCore, Min: test.min}).limit(test.cores); got != test.want {
			t.Errorf("%d a core, at least %d, %d cores: %d, want %d", test.perCore, test.min, test.cores, got, test.want)
		}
	}
}

// The time-outs are a network namespace's own, so they can be set everywhere that an agent runs.
func TestConntrackTimeouts(t *testing.T) {
	l, err := lab.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	n, err := l.AddNode("n1", lab.Routed)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Do(func() error {
		c := Conntrack{TCPEstablishedTimeout: 2 * time.Hour, TCPCloseWaitTimeout: time.Hour}
		if err := c.apply(); err != nil {
			return err
		}
		for name, want := range map[string]int{"tcp_timeout_established": 7200, "tcp_timeout_close_wait": 3600} {
			if got, err := readConntrack(name); err != nil || got != want {
				t.Errorf("%s is %d, want %d (%v)", name, got, want, err)
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}
