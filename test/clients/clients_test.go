package clients

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// fullShareWithin is how long a new backend may take, from the moment that it is ready, to have as many calls as others.
const fullShareWithin = time.Second

func TestClients(t *testing.T) {
	c := startCluster(t, false)
	for i, language := range strings.Split(*languages, ",") {
		t.Run(language, func(t *testing.T) {
			p := startProgram(t, c.client, language, c.bootstrap(t, language, "--insecure", "--server", c.address(18000)))
			for n, test := range []struct {
				name string
				run  func(*testing.T, *service, *program)
			}{{"names", testNames}, {"changes", testChanges}, {"missing", testMissing}, {"zones", testZones}} {
				t.Run(test.name, func(t *testing.T) {
					test.run(t, &service{
						cluster: c, t: t,
						name:    test.name + "-" + language,
						address: fmt.Sprintf("10.96.%d.%d", i+1, n+1),
					}, p)
				})
			}
		})
	}
}

// testChanges follows one program through what happens to a Service. No call may fail.
//
//  1. Three backends, in two zones, share the calls evenly.
//  2. A fourth gets its full share at once.
//  3. All are replaced, one after the other, while calls are made, as a rolling update does.
//  4. The control plane crashes: the program goes on. Another backend is ready before the control plane is back, and
//     gets its share after.
func testChanges(t *testing.T, s *service, p *program) {
	for node := range 3 {
		s.addPod(node % 2)
	}
	s.write()
	channel := p.dial(t, "xds:///"+s.name+".default:80")
	channel.callUntil("all backends are connected", evenly(s.names()...))
	if r := channel.call(300); !evenly(s.names()...)(r) {
		t.Errorf("300 calls went to %v", r.Answers)
	}

	s.addPod(1)
	s.write()
	if took := channel.callUntil("the new backend has its share", evenly(s.names()...)); took > fullShareWithin {
		t.Errorf("a new backend had its full share after %s, want %s", took, fullShareWithin)
	} else {
		t.Logf("a new backend had its full share after %s", took.Round(time.Millisecond))
	}

	for _, old := range slices.Clone(s.pods) {
		s.addPod(old.node)
		s.write()
		channel.callUntil("the new backend has its share", evenly(s.names()...))
		gone := s.terminate(withPatience(t), old)
		channel.callUntil("the old backend gets no more calls", evenly(s.names()...))
		if err := <-gone; err != nil {
			t.Error(err)
		}
		channel.call(batch)
	}

	s.cluster.fleet.Serve().Kill()
	for range 20 {
		channel.callUntil("the backends go on while there is no control plane", evenly(s.names()...))
	}
	s.addPod(0)
	s.write()
	must(t, s.cluster.fleet.StartServe())
	took := channel.callUntil("the control plane is back", evenly(s.names()...))
	t.Logf("a control plane that was back was found after %s", took.Round(time.Millisecond))
}

// testNames: a Service can be dialled by all its names, with its port's number or name.
func testNames(t *testing.T, s *service, p *program) {
	s.addPod(0)
	s.write()
	for _, rest := range []string{
		"default:80", "default.svc:80", "default.svc.cluster.local:80", "default:grpc", "default.svc.cluster.local:grpc",
	} {
		if !numbersOnly[p.language] || strings.HasSuffix(rest, ":80") {
			p.dial(t, "xds:///"+s.name+"."+rest).call(batch)
		}
	}
}

// testMissing: calls to a Service that does not exist fail at once, and succeed once it does. When it is deleted they fail
// again. So do calls to a port that the Service does not have.
func testMissing(t *testing.T, s *service, p *program) {
	channel := p.dial(t, "xds:///"+s.name+".default:80")
	channel.wantErrorAtOnce()

	s.addPod(0)
	s.write()
	within(t, "the Service exists", func() bool { return len(channel.try(1).Errors) == 0 })
	channel.call(batch)
	p.dial(t, "xds:///"+s.name+".default:81").wantErrorAtOnce()

	s.cluster.remove(s.name)
	within(t, "the Service is gone", func() bool { return len(channel.try(1).Answers) == 0 })
	channel.wantErrorAtOnce()
}

// testZones: a program gets the endpoints that its node's zone is hinted to, as the node's own proxy does. It says which
// node it is on, and nothing of a zone.
func testZones(t *testing.T, s *service, p *program) {
	s.addPod(0)
	s.addPod(1)
	s.hints = true
	s.write()
	channel := p.dial(t, "xds:///"+s.name+".default:80")
	channel.callUntil("the backend of the program's zone has all calls", evenly(s.pods[0].Name))

	s.hints = false
	s.write()
	channel.callUntil("the hints are gone", evenly(s.names()...))
}

// within waits until a condition holds.
func within(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for late := time.Now().Add(patience); !holds(); {
		if time.Now().After(late) {
			t.Fatalf("not within %s: %s", patience, what)
		}
	}
}
