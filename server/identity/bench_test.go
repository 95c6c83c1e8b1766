package identity

import (
	"io"
	"net"
	"testing"
	"time"

	gcpresource "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// BenchmarkRefusal is what a client with an invented token costs both sides: on a connection that it has, a stream that is
// refused; or a connection that does not even speak TLS.
func BenchmarkRefusal(b *testing.B) {
	api := newAPIServer(b)
	dir := folder(b)
	c := serve(b, fromFiles(b, dir, &logBuffer{}), api.authenticator(b, nil))

	b.Run("token", func(b *testing.B) {
		conn := dial(b, c.address, dir+"/"+caFile, sign(b, agentToken("n1"), forgedKey))
		b.ReportAllocs()
		for b.Loop() {
			if err := rpcs()[0].call(conn, "", "n1", gcpresource.ClusterType); status.Code(err) != codes.Unauthenticated {
				b.Fatal(err)
			}
		}
	})
	b.Run("garbage", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			conn, err := net.Dial("tcp", c.address)
			if err != nil {
				b.Fatal(err)
			}
			conn.SetDeadline(time.Now().Add(deadline))
			if _, err := conn.Write([]byte("GET / HTTP/1.1\r\n\r\n")); err != nil {
				b.Fatal(err)
			}
			io.Copy(io.Discard, conn) // Ends when the server has had enough.
			conn.Close()
		}
	})
}
