package healthcheck

import (
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"github.com/fairlead/fairlead/translate/model"
)

var web = model.ServiceKey{Namespace: "default", Name: "web"}

// free returns an address with a port that nobody listens on.
func free(t *testing.T) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).AddrPort()
}

func TestAnswer(t *testing.T) {
	for _, test := range []struct {
		endpoints int
		healthy   bool
		status    int
		body      string
	}{
		{2, true, 200, "{\n\t\"service\": {\n\t\t\"namespace\": \"default\",\n\t\t\"name\": \"web\"\n\t},\n\t\"localEndpoints\": 2,\n\t\"serviceProxyHealthy\": true\n}"},
		{2, false, 503, "{\n\t\"service\": {\n\t\t\"namespace\": \"default\",\n\t\t\"name\": \"web\"\n\t},\n\t\"localEndpoints\": 2,\n\t\"serviceProxyHealthy\": false\n}"},
		{0, true, 503, "{\n\t\"service\": {\n\t\t\"namespace\": \"default\",\n\t\t\"name\": \"web\"\n\t},\n\t\"localEndpoints\": 0,\n\t\"serviceProxyHealthy\": true\n}"},
	} {
		s := New(func() bool { return test.healthy }, slog.Default())
		at := free(t)
		s.Serve(map[netip.AddrPort]Check{at: {web, test.endpoints}})
		r, err := http.Get("http://" + at.String() + "/any/path")
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(r.Body)
		if err != nil || r.StatusCode != test.status || string(body) != test.body {
			t.Errorf("%+v: %d, %q, %v", test, r.StatusCode, body, err)
		}
		weight := string(rune('0' + test.endpoints))
		for header, want := range map[string]string{"Content-Type": "application/json", "X-Content-Type-Options": "nosniff", "X-Load-Balancing-Endpoint-Weight": weight} {
			if got := r.Header.Get(header); got != want {
				t.Errorf("%s: %q, want %q", header, got, want)
			}
		}
		r.Body.Close()
		s.Close()
		if _, err := http.Get("http://" + at.String()); err == nil {
			t.Error("answers after Close")
		}
	}
}

// A port that another program has is a Problem until it is free.
func TestPortUnavailable(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := taken.Addr().(*net.TCPAddr).AddrPort()
	s := New(func() bool { return true }, slog.Default())
	defer s.Close()
	checks := map[netip.AddrPort]Check{at: {web, 1}}
	s.Serve(checks)
	p := s.Problems()
	if len(p) != 1 || p[0].Object != "Service default/web" || p[0].Reason != model.PortUnavailable || !strings.Contains(p[0].Message, at.Addr().String()) {
		t.Fatalf("problems: %+v", p)
	}
	taken.Close()
	s.Serve(checks)
	if p := s.Problems(); len(p) != 0 {
		t.Errorf("still %+v", p)
	}
	r, err := http.Get("http://" + at.String())
	if err != nil || r.StatusCode != http.StatusOK {
		t.Fatalf("%v, %v", r, err)
	}
	r.Body.Close()
}
