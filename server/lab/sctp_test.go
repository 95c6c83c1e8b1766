package lab

import (
	"net/netip"
	"os/exec"
	"reflect"
	"strings"
	"sync"
	"testing"
)

func TestSetUpPackets(t *testing.T) {
	for _, want := range []setUp{
		{from: 1024, to: 80, kind: sctpInit, initiate: 7},
		{from: 80, to: 1024, tag: 7, kind: sctpInitAck, initiate: 8, cookie: []byte("n1 10.244.1.10:1024")},
	} {
		packet := want.marshal()
		if got, ok := parseSetUp(packet); !ok || !reflect.DeepEqual(got, want) {
			t.Errorf("got %v %v, want %v", got, ok, want)
		}
		for i := range packet {
			packet[i]++
			if got, ok := parseSetUp(packet); ok {
				t.Errorf("byte %d is wrong, and it is taken for %v", i, got)
			}
			packet[i]--
		}
		for n := range packet {
			if got, ok := parseSetUp(packet[:n]); ok {
				t.Errorf("cut after %d bytes it is taken for %v", n, got)
			}
		}
	}
}

// What a firewall rejects is refused, and each of many exchanges at once hears of its own packet alone.
func TestSCTPRefused(t *testing.T) {
	l := newLab(t)
	client, n1 := l.Host("client"), l.Host("n1")
	var said []byte
	err := n1.Do(func() (err error) {
		nft := exec.Command("nft", "-f", "-")
		nft.Stdin = strings.NewReader("table inet t { chain input { type filter hook input priority 0; sctp dport 1 reject; }; }")
		said, err = nft.CombinedOutput()
		return err
	})
	if err != nil {
		t.Fatalf("%v: %s", err, said)
	}
	var work sync.WaitGroup
	for i := range 24 {
		to, want := netip.AddrPortFrom([]netip.Addr{n1.IPv4, n1.IPv6}[i%2], sctpPort), Failure("")
		if i%4 < 2 && i < 12 { // The kernel sends one client six ICMP errors, and then one a second.
			to, want = netip.AddrPortFrom(to.Addr(), 1), Refused
		}
		work.Go(func() {
			if a, err := client.Ask(deadline(t), Request{Network: SCTP, To: to}); FailureOf(err) != want {
				t.Errorf("%s: answer %v, error %v, want %q", to, a, err, want)
			}
		})
	}
	work.Wait()
}
