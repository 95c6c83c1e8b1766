package main

import (
	"log/slog"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

// Where xDS is served in the clear anybody may read it, so it is only on loopback, and elsewhere by --insecure alone.
func TestSecure(t *testing.T) {
	for name, test := range map[string]struct {
		listen string
		flags  string
		secure bool
		warned bool
		err    string
	}{
		"loopback":                         {listen: "127.0.0.1:18000"},
		"loopback, another address":        {listen: "127.9.9.9:18000"},
		"loopback, IPv6":                   {listen: "[::1]:18000"},
		"loopback, IPv4 in IPv6":           {listen: "[::ffff:127.0.0.1]:18000"},
		"loopback, with certificates":      {listen: "127.0.0.1:18000", flags: "--tls-dir /tls", secure: true},
		"every address":                    {listen: "0.0.0.0:18000", secure: true},
		"every address, IPv6":              {listen: "[::]:18000", secure: true},
		"one address":                      {listen: "192.0.2.1:18000", secure: true},
		"one address, with certificates":   {listen: "192.0.2.1:18000", flags: "--tls-dir /tls", secure: true},
		"one address, IPv4 in IPv6":        {listen: "[::ffff:192.0.2.1]:18000", secure: true},
		"link-local, with a zone":          {listen: "[fe80::1%eth0]:18000", secure: true},
		"insecure":                         {listen: "0.0.0.0:18000", flags: "--insecure", warned: true},
		"insecure and with certificates":   {listen: "0.0.0.0:18000", flags: "--insecure --tls-dir /tls", err: "--tls-dir and --insecure: use one"},
		"a name, which may mean any":       {listen: "localhost:18000", err: "use an address and a port"},
		"a name, insecure":                 {listen: "localhost:18000", flags: "--insecure", err: "use an address and a port"},
		"no address, which means each":     {listen: ":18000", err: "use an address and a port"},
		"no port":                          {listen: "127.0.0.1", err: "use an address and a port"},
		"a port that is none":              {listen: "127.0.0.1:99999", err: "use an address and a port"},
		"loopback by an address that lies": {listen: "127.0.0.1.example:18000", err: "use an address and a port"},
	} {
		t.Run(name, func(t *testing.T) {
			var f serverIdentityFlags
			set := pflag.NewFlagSet("serve", pflag.ContinueOnError)
			f.add(set)
			if err := set.Parse(strings.Fields(test.flags)); err != nil {
				t.Fatal(err)
			}
			var log strings.Builder
			secure, err := f.secure(test.listen, slog.New(slog.NewTextHandler(&log, nil)))
			if test.err != "" {
				if err == nil || !strings.Contains(err.Error(), test.err) || secure {
					t.Errorf("secure: %v, error %v; want %q", secure, err, test.err)
				}
				return
			}
			if err != nil || secure != test.secure {
				t.Errorf("secure: %v, error %v; want %v", secure, err, test.secure)
			}
			if warned := strings.Contains(log.String(), "without TLS and client authentication"); warned != test.warned {
				t.Errorf("warned: %v, want %v; log: %s", warned, test.warned, &log)
			}
		})
	}
}

func TestAllLoopback(t *testing.T) {
	for servers, want := range map[string]bool{
		"127.0.0.1:18000":                 true,
		"[::1]:18000":                     true,
		"[::ffff:127.0.0.1]:18000":        true,
		"127.0.0.1:18000 127.0.0.2:18000": true,
		"":                                false, // They come from the API server.
		"192.0.2.1:18000":                 false,
		"127.0.0.1:18000 192.0.2.1:18000": false,
		"192.0.2.1:18000 127.0.0.1:18000": false,
		"localhost:18000":                 false, // Who resolves it decides where it leads.
		"127.0.0.1.example:18000":         false,
		"127.0.0.1":                       false,
		"0.0.0.0:18000":                   false,
		"unix:///run/socket":              false,
	} {
		if got := allLoopback(strings.Fields(servers)); got != want {
			t.Errorf("%q: got %v, want %v", servers, got, want)
		}
	}
}

// An agent talks in the clear only to loopback, and only where no flag speaks of certificates or tokens.
func TestDialOptions(t *testing.T) {
	const plain, secured = 1, 2 // Options: transport; and the token, which is only sent over TLS.
	for name, test := range map[string]struct {
		servers, flags string
		want           int
		err            string
	}{
		"loopback":                         {"127.0.0.1:18000", "", plain, ""},
		"loopback, but a CA is named":      {"127.0.0.1:18000", "--ca-file ca.crt", secured, ""},
		"loopback, but a token is named":   {"127.0.0.1:18000", "--token-file token", secured, ""},
		"loopback, but a server is named":  {"127.0.0.1:18000", "--server-name fairlead", secured, ""},
		"another address":                  {"192.0.2.1:18000", "", secured, ""},
		"another address beside loopback":  {"127.0.0.1:18000 192.0.2.1:18000", "", secured, ""},
		"addresses that only the API has":  {"", "", secured, ""},
		"another address, insecure":        {"192.0.2.1:18000", "--insecure", plain, ""},
		"another address, without a CA":    {"192.0.2.1:18000", "--ca-file=", 0, "no file of the CA"},
		"another address, without a token": {"192.0.2.1:18000", "--token-file=", 0, "no file of the service-account token"},
		"another address, without a name":  {"192.0.2.1:18000", "--server-name=", 0, "no name in the control plane's certificate"},
	} {
		t.Run(name, func(t *testing.T) {
			var f clientIdentityFlags
			set := pflag.NewFlagSet("agent", pflag.ContinueOnError)
			f.add(set)
			if err := set.Parse(strings.Fields(test.flags)); err != nil {
				t.Fatal(err)
			}
			options, err := f.dialOptions(strings.Fields(test.servers))
			if len(options) != test.want || (err == nil) != (test.err == "") || err != nil && !strings.Contains(err.Error(), test.err) {
				t.Errorf("%d options, error %v; want %d, %q", len(options), err, test.want, test.err)
			}
		})
	}
}
