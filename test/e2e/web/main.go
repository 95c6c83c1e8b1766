// Command web is what the pods of the tests on real nodes run: it answers every request as the servers of server/lab do,
// with its host's name and the address that it saw the client come from, and then with the request's body.
//
// It ends as a good server does: told to, it serves on for a while, because not every node knows yet that it is going,
// then takes no new connections, and lets the requests under way finish.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// maxBody is the most bytes of a request's body that come back.
const maxBody = 16 << 20

func main() {
	port := flag.Int("port", 8080, "TCP and UDP port")
	linger := flag.Duration("linger", 3*time.Second, "how long to serve on after SIGTERM")
	pause := flag.Bool("pause", false, "serve nothing and wait for SIGTERM, as the container that holds a pod's network namespace does")
	flag.Parse()
	if *pause {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
		defer stop()
		<-ctx.Done()
		return
	}
	if err := serve(*port, *linger); err != nil {
		log.Fatal(err)
	}
}

func serve(port int, linger time.Duration) error {
	name, err := os.Hostname()
	if err != nil {
		return err
	}
	packets, err := net.ListenUDP("udp", &net.UDPAddr{Port: port})
	if err != nil {
		return err
	}
	go answerDatagrams(name, packets)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	server := &http.Server{
		Addr:              fmt.Sprintf(":%d", port),
		ReadHeaderTimeout: time.Minute,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			// The whole body is read before the answer starts: an HTTP/1.1 server need not do both at once.
			body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
			if err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
			fmt.Fprintln(w, name, clientOf(r.RemoteAddr))
			_, _ = w.Write(body) // A client that has gone needs no answer.
		}),
	}
	failed := make(chan error, 1)
	go func() { failed <- server.ListenAndServe() }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	// Connections are still taken until all nodes know that the Pod is going.
	select {
	case err := <-failed:
		return err
	case <-time.After(linger):
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	return server.Shutdown(ctx)
}

// clientOf writes an IPv4 client of a dual-stack socket as IPv4.
func clientOf(remote string) string {
	a, err := netip.ParseAddrPort(remote)
	if err != nil {
		return remote
	}
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()).String()
}

func answerDatagrams(name string, packets *net.UDPConn) {
	in := make([]byte, 65507)
	for {
		n, client, err := packets.ReadFromUDPAddrPort(in)
		if err != nil {
			continue // An ICMP error that an earlier answer met; the socket is never closed.
		}
		out := append([]byte(name+" "+clientOf(client.String())+"\n"), in[:n]...)
		_, _ = packets.WriteToUDPAddrPort(out[:min(len(out), len(in))], client) // An answer may get lost, as any datagram.
	}
}
