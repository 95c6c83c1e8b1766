package launcher

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Request is a proxy's request to join its namespace to the node.
type Request struct {
	Namespace *os.File // An open file keeps the namespace alive: Accept and Refuse close it, or it would outlive its Envoy.
	conn      *net.UnixConn
}

// Accept lets the Envoy start with the bootstrap.
func (r *Request) Accept(bootstrap []byte) error { return r.answer(reply{Bootstrap: bootstrap}) }

// Refuse answers with an error, which the proxy prints before it exits.
func (r *Request) Refuse(err error) error { return r.answer(reply{Error: err.Error()}) }

func (r *Request) answer(a reply) error {
	defer r.conn.Close()
	defer r.Namespace.Close()
	if err := r.conn.SetWriteDeadline(time.Now().Add(answerTimeout)); err != nil {
		return err
	}
	if err := json.NewEncoder(r.conn).Encode(a); err != nil {
		return fmt.Errorf("answer the proxy: %w", err)
	}
	return nil
}

// answerTimeout bounds how long a proxy that hangs blocks the agent. Both ends are on one machine.
const answerTimeout = 5 * time.Second

// Listen passes the requests that arrive at a unix socket to requests, until ctx ends. It closes the listener.
func Listen(ctx context.Context, listener *net.UnixListener, requests chan<- *Request) error {
	stop := context.AfterFunc(ctx, func() { listener.Close() })
	defer stop()
	for {
		conn, err := listener.AcceptUnix()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("accept proxies: %w", err)
		}
		r, err := receive(conn)
		if err != nil {
			conn.Close() // A proxy that failed tries again by itself.
			continue
		}
		select {
		case requests <- r:
		case <-ctx.Done():
			r.Namespace.Close()
			conn.Close()
		}
	}
}

// receive reads the namespace that a proxy sends.
func receive(conn *net.UnixConn) (*Request, error) {
	if err := conn.SetReadDeadline(time.Now().Add(answerTimeout)); err != nil {
		return nil, err
	}
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := conn.ReadMsgUnix(make([]byte, 1), oob)
	if err != nil {
		return nil, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil {
		return nil, err
	}
	if len(messages) != 1 {
		return nil, errors.New("no namespace came with the request")
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil, fmt.Errorf("no namespace came with the request: %w", err)
	}
	unix.CloseOnExec(fds[0])
	return &Request{Namespace: os.NewFile(uintptr(fds[0]), "namespace"), conn: conn}, nil
}
