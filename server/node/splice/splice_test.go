package splice

import (
	"fmt"
	"os"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"

	"github.com/fairlead/fairlead/server/lab"
	"github.com/fairlead/fairlead/server/node/dataplane"
	"github.com/fairlead/fairlead/server/node/envoyns"
	"github.com/fairlead/fairlead/translate/frontendpb"
)

// The tests attach programs to links of a network namespace that only they see.
func TestMain(m *testing.M) {
	code, err := lab.Isolated(m.Run)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(code)
}

// host returns a lab's node with a pod, and the pod's link.
func host(t *testing.T) (*lab.Node, Link) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("the kernel loads programs of root alone")
	}
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
	pod, err := n.AddPod("pod-1", 12)
	if err != nil {
		t.Fatal(err)
	}
	var index int
	do(t, n, func() error {
		veth, err := netlink.LinkByName(pod.Port())
		if err == nil {
			index = veth.Attrs().Index
		}
		return err
	})
	return n, Link{Index: index, Route: index}
}

func do(t *testing.T, n *lab.Node, f func() error) {
	t.Helper()
	if err := n.Do(f); err != nil {
		t.Fatal(err)
	}
}

// on returns the id of our program on a link, 0 for none.
func on(t *testing.T, n *lab.Node, index int) (id ebpf.ProgramID) {
	t.Helper()
	do(t, n, func() error {
		p, err := attached(index)
		if err != nil || p == nil {
			return err
		}
		defer p.Close()
		info, err := p.Info()
		if err == nil {
			id, _ = info.ID()
		}
		return err
	})
	return id
}

func web(class frontendpb.Class) *frontendpb.Frontend {
	return &frontendpb.Frontend{Address: []byte{10, 96, 0, 10}, Port: 80, Protocol: "TCP", Kind: "ClusterIP",
		Pod: &frontendpb.Route{Verdict: frontendpb.Verdict_FORWARD, Class: class}}
}

// count returns how many frontends the kernel has.
func count(t *testing.T, s *Splice) (n int) {
	t.Helper()
	var k frontend
	var class uint32
	entries := s.maps.frontends.Iterate()
	for entries.Next(&k, &class) {
		n++
	}
	if err := entries.Err(); err != nil {
		t.Fatal(err)
	}
	return n
}

// The programs stay without their agent; the next agent goes on with the same programs, maps and flows, and removes what is no
// longer wanted. Remove leaves nothing.
func TestHandover(t *testing.T) {
	n, pod := host(t)
	commit := func(s *Splice) {
		t.Helper()
		do(t, n, func() error { return s.Commit(dataplane.Instances{}, nil, []Link{pod}) })
	}
	open := func() (s *Splice) {
		t.Helper()
		do(t, n, func() (err error) { s, err = Open(envoyns.DefaultConfig()); return err })
		return s
	}
	first := open()
	first.SetFrontend("10.96.0.10:80/TCP", web(frontendpb.Class_KEEP))
	commit(first)
	if got := count(t, first); got != 1 {
		t.Errorf("%d frontends, want 1", got)
	}
	if err := first.maps.flows.Put([36]byte{1}, flow{Link: 7}); err != nil {
		t.Fatal(err)
	}
	program := on(t, n, pod.Index)
	if program == 0 {
		t.Fatal("no program at the pod's link")
	}
	first.Close()
	if got := on(t, n, pod.Index); got != program {
		t.Fatalf("without the agent the link has program %d, want %d", got, program)
	}
	second := open()
	defer second.Close()
	var f flow
	if err := second.maps.flows.Lookup([36]byte{1}, &f); err != nil || f.Link != 7 {
		t.Errorf("the second agent finds flow %v, error %v", f, err)
	}
	commit(second)
	if got := count(t, second); got != 0 {
		t.Errorf("%d frontends are left that no agent wants", got)
	}
	if got := on(t, n, pod.Index); got != program {
		t.Errorf("the second agent attached program %d in place of the same, %d", got, program)
	}
	do(t, n, Remove)
	if got := on(t, n, pod.Index); got != 0 {
		t.Errorf("program %d is left", got)
	}
	second.Inspect()
	commit(second)
	if got := on(t, n, pod.Index); got == 0 {
		t.Error("a program that someone removed is not attached again")
	}
	do(t, n, func() error { return second.Commit(dataplane.Instances{}, nil, nil) })
	if got := on(t, n, pod.Index); got != 0 {
		t.Error("a link that is no longer a pod's has its program")
	}
}

// A frontend is in the kernel only while its connections are to be spliced.
func TestFrontends(t *testing.T) {
	n, _ := host(t)
	var s *Splice
	do(t, n, func() (err error) { s, err = Open(envoyns.DefaultConfig()); return err })
	defer s.Close()
	direct, ranged, udp, nodePort, none := web(1), web(1), web(1), web(1), web(1)
	direct.Direct, ranged.Limited, udp.Protocol, nodePort.Address = &frontendpb.Direct{}, &frontendpb.Limited{}, "UDP", nil
	none.Pod.Verdict = frontendpb.Verdict_REFUSE
	for i, test := range []struct {
		what string
		f    *frontendpb.Frontend
		want int
	}{
		{"class keep", web(frontendpb.Class_KEEP), 1}, {"class masq", web(frontendpb.Class_MASQ), 0}, {"class external", web(frontendpb.Class_EXTERNAL), 1},
		{"direct", direct, 0}, {"source ranges", ranged, 0}, {"class keep again", web(frontendpb.Class_KEEP), 1}, {"UDP", udp, 0}, {"a NodePort", nodePort, 0},
		{"class keep for the third time", web(frontendpb.Class_KEEP), 1}, {"no endpoints", none, 0}, {"removed", nil, 0},
	} {
		s.SetFrontend("10.96.0.10:80/TCP", test.f)
		do(t, n, func() error { return s.Commit(dataplane.Instances{}, nil, nil) })
		if got := count(t, s); got != test.want {
			t.Errorf("step %d, %s: the kernel has %d frontends, want %d", i, test.what, got, test.want)
		}
	}
}

// Every mask that the agent accepts makes programs that the kernel accepts.
func TestPrograms(t *testing.T) {
	host(t)
	m, err := openMaps(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer m.close()
	for _, mask := range []uint32{0x3f00, 0x3f, 0xfc000000} {
		config := envoyns.Config{Mask: mask}
		for name, code := range map[string]func() (*ebpf.Program, error){
			podName: func() (*ebpf.Program, error) { return load(podName, podProgram(m, mask)) },
			keepName: func() (*ebpf.Program, error) {
				return load(keepName, keepProgram(m, mask, config.Mark(envoyns.MaxID, 0)))
			},
		} {
			p, err := code()
			if err != nil {
				t.Errorf("mask %#x, %s: %+v", mask, name, err)
				continue
			}
			if err := p.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}
