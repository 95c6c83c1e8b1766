package identity

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	gcpresource "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/fairlead/fairlead/cache"
	"github.com/fairlead/fairlead/server/node/upstream"
)

// Whoever does not speak TLS is sent away, which the log says; meanwhile another is served.
func TestGarbage(t *testing.T) {
	api := newAPIServer(t)
	dir := folder(t)
	c := serve(t, fromFiles(t, dir, &logBuffer{}), api.authenticator(t, nil))
	good := newAgent(t, dial(t, c.address, dir+"/"+caFile, token(t, agentToken("n1"))), "n1")
	good.take(t, 80)

	for i, test := range []struct {
		name   string
		bytes  []byte
		reason string
	}{
		{"HTTP", []byte("GET / HTTP/1.1\r\nHost: fairlead\r\n\r\n"), "does not look like a TLS handshake"},
		{"HTTP/2 in the clear", []byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"), "does not look like a TLS handshake"},
		{"a megabyte of nothing", make([]byte, 1<<20), "does not look like a TLS handshake"},
		{"an enormous record", append([]byte{22, 3, 1, 255, 255}, make([]byte, 1<<16)...), "oversized record"},
		{"a handshake that makes no sense", append([]byte{22, 3, 1, 0, 8, 1, 0, 0, 4}, "abcd"...), "tls: "},
		{"half a handshake", []byte{22, 3, 1, 1, 0, 1}, "EOF"},
	} {
		t.Run(test.name, func(t *testing.T) {
			conn, err := net.Dial("tcp", c.address)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(deadline))
			go func() {
				io.Copy(conn, bytes.NewReader(test.bytes)) // Fails when the server has had enough.
				conn.(*net.TCPConn).CloseWrite()
			}()
			if _, err := io.Copy(io.Discard, conn); err != nil && os.IsTimeout(err) {
				t.Error("the server keeps the connection")
			}
			if test.reason != "EOF" { // Who hangs up is no news.
				eventually(t, "the reason is in the log", func() bool {
					return len(c.log.lines("xds connection refused", "127.0.0.1:", test.reason)) > 0
				})
			}
			c.publish(t, uint32(1000+i))
			good.take(t, uint32(1000+i))
		})
	}
}

func TestOldTLS(t *testing.T) {
	api := newAPIServer(t)
	c := serve(t, fromFiles(t, folder(t), &logBuffer{}), api.authenticator(t, nil))
	conn, err := tls.Dial("tcp", c.address, &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12})
	if err == nil {
		conn.Close()
		t.Fatal("TLS 1.2 is good enough")
	}
	eventually(t, "the reason is in the log", func() bool { return len(c.log.lines("xds connection refused", "versions")) > 0 })
}

// soon returns a time that a token may expire at, which has no fractions of a second, for a test to wait for.
func soon() time.Time {
	return time.Now().Add(1500 * time.Millisecond).Truncate(time.Second).Add(time.Second)
}

// Every stream ends when the token that it was opened with expires, though its client says nothing more.
func TestExpiredTokenEndsStreams(t *testing.T) {
	api := newAPIServer(t)
	dir := folder(t)
	c := serve(t, fromFiles(t, dir, &logBuffer{}), api.authenticator(t, nil))
	expires := soon()
	conn := dial(t, c.address, dir+"/"+caFile, token(t, agentToken("n1").with(func(b *bound) { b.Expires = expires.Unix() })))

	delta := open(t, conn)
	delta.send(t, &discoverypb.DeltaDiscoveryRequest{Node: node("n1"), TypeUrl: gcpresource.ClusterType})
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	for _, call := range rpcs() {
		if !call.stream.ClientStreams || strings.Contains(call.method, "/Delta") {
			continue
		}
		s, err := conn.NewStream(ctx, &call.stream, call.method)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.SendMsg(&discoverypb.DiscoveryRequest{Node: node("n1"), TypeUrl: gcpresource.ClusterType}); err != nil {
			t.Fatal(err)
		}
		if err := s.RecvMsg(&discoverypb.DiscoveryResponse{}); err != nil {
			t.Fatalf("%s: %v", call, err)
		}
		defer func() {
			err := s.RecvMsg(&discoverypb.DiscoveryResponse{})
			if status.Code(err) != codes.Unauthenticated || !strings.Contains(err.Error(), "has expired") {
				t.Errorf("%s ends with %v", call, err)
			}
		}()
	}
	if _, err := delta.ads.Recv(); err != nil {
		t.Fatal(err)
	}
	_, err := delta.ads.Recv()
	if status.Code(err) != codes.Unauthenticated || !strings.Contains(err.Error(), "has expired") {
		t.Errorf("delta ends with %v", err)
	}
	if time.Now().Before(expires) {
		t.Error("the stream ended before its token did")
	}
}

// An agent whose token expires comes back with the one that the kubelet has put in its place, and is sent nothing that
// it has.
func TestTokenRotation(t *testing.T) {
	api := newAPIServer(t)
	dir := folder(t)
	c := serve(t, fromFiles(t, dir, &logBuffer{}), api.authenticator(t, nil))
	file := filepath.Join(t.TempDir(), "token")
	put := func(token string) {
		if err := os.WriteFile(file, []byte(token), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put(token(t, agentToken("n1").with(func(b *bound) { b.Expires = soon().Unix() })))
	options, err := ClientConfig{CAFile: dir + "/" + caFile, ServerName: DefaultServerName, TokenFile: file}.DialOptions()
	if err != nil {
		t.Fatal(err)
	}
	client, err := upstream.New(upstream.Config{
		Node: "n1", Addresses: []string{c.address}, Types: []string{cache.FrontendType}, DialOptions: options, Logger: (&logBuffer{}).logger(),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- client.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	client.Ack(<-client.Updates())

	put(token(t, agentToken("n1")))
	eventually(t, "the agent is back", func() bool { s := client.Status(); return s.Connected && s.Streams == 2 })
	if s := client.Status(); !strings.Contains(s.LastError, "has expired") {
		t.Errorf("the first stream ended with %q", s.LastError)
	}
	c.publish(t, 81)
	client.Ack(<-client.Updates())
	if s := client.Status(); s.Types[0].Responses != 2 {
		t.Errorf("%d responses, want one for each change", s.Types[0].Responses)
	}
}

// A client says what is missing on its side.
func TestClientConfig(t *testing.T) {
	if _, err := (ClientConfig{ServerName: "fairlead", TokenFile: "token"}).DialOptions(); err == nil || !strings.Contains(err.Error(), "no file of the CA") {
		t.Errorf("without a CA: %v", err)
	}
	api := newAPIServer(t)
	dir, other := folder(t), folder(t)
	c := serve(t, fromFiles(t, dir, &logBuffer{}), api.authenticator(t, nil))
	empty := filepath.Join(t.TempDir(), "empty")
	write(t, filepath.Dir(empty), map[string][]byte{"empty": nil})
	for _, test := range []struct{ name, ca, serverName, token, want string }{
		{"no CA", filepath.Join(dir, "none"), DefaultServerName, "x", "no such file"},
		{"an empty CA", empty, DefaultServerName, "x", "holds no certificate"},
		{"another CA", filepath.Join(other, caFile), DefaultServerName, "x", "certificate signed by unknown authority"},
		{"another name", filepath.Join(dir, caFile), "fairlead.example", "x", "not fairlead.example"},
		{"no token", filepath.Join(dir, caFile), DefaultServerName, filepath.Join(dir, "none"), "no such file"},
		{"an empty token", filepath.Join(dir, caFile), DefaultServerName, empty, "is empty"},
	} {
		t.Run(test.name, func(t *testing.T) {
			options, err := ClientConfig{CAFile: test.ca, ServerName: test.serverName, TokenFile: test.token}.DialOptions()
			if err != nil {
				t.Fatal(err)
			}
			conn, err := grpc.NewClient(c.address, options...)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			err = rpcs()[0].call(conn, "", "n1", gcpresource.ClusterType)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want %q", err, test.want)
			}
		})
	}
}
