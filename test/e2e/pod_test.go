package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/fairlead/fairlead/server/lab"
)

// Images that the kubelets can run.
const (
	imageEcho    = "echo"    // Answers HTTP and UDP on the ports that the container declares.
	imageClient  = "client"  // Does nothing: tests dial from it.
	imageCoreDNS = "coredns" // The real one, as a process.
)

// quiet is for how long a terminating pod must not have been asked before it ends.
const quiet = 500 * time.Millisecond

// pod is a running Pod.
type pod struct {
	key  string // namespace/name
	name string
	node *lab.Node
	host *lab.Host

	lastAsked   atomic.Int64 // Unix nanoseconds of the last request.
	asked       atomic.Int64 // Requests and datagrams so far.
	terminating atomic.Bool

	closers []func() error // What end closes, last first. Not changed after startPod.
}

// answer is what an echo pod says about a request.
type answer struct {
	Pod    string         `json:"pod"`
	Client netip.AddrPort `json:"client"` // As the pod sees it.
}

// startPod makes a Pod's network namespace and starts what its image names.
func (c *cluster) startPod(ctx context.Context, node *lab.Node, object *corev1.Pod) (_ *pod, err error) {
	p := &pod{key: object.Namespace + "/" + object.Name, name: object.Name, node: node}
	if p.host, err = node.AddPod(object.Name, lab.PodOptions{}); err != nil {
		return nil, err
	}
	p.closers = append(p.closers, p.host.Delete)
	container := object.Spec.Containers[0]
	switch container.Image {
	case imageEcho:
		err = p.echo(container.Ports)
	case imageCoreDNS:
		err = p.coreDNS(ctx, c)
	case imageClient:
	default:
		err = fmt.Errorf("no image %q", container.Image)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("pod %s: %w", p.key, err), p.end())
	}
	return p, nil
}

// end stops the Pod's servers and removes its namespace.
func (p *pod) end() error {
	var errs []error
	for i := len(p.closers) - 1; i >= 0; i-- {
		errs = append(errs, p.closers[i]())
	}
	return errors.Join(errs...)
}

// drained waits until nobody has asked the pod for a while, at most for the grace period.
func (p *pod) drained(ctx context.Context, grace time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	since := time.Now()
	_ = eventually(ctx, func() error { // It fails at the end of the grace period, which ends a pod as well.
		if last := time.Unix(0, p.lastAsked.Load()); last.After(since) {
			since = last
		}
		if time.Since(since) < quiet {
			return errors.New("still asked")
		}
		return nil
	})
}

func (p *pod) count() {
	p.asked.Add(1)
	p.lastAsked.Store(time.Now().UnixNano())
}

// echo serves on every port, in both families.
func (p *pod) echo(ports []corev1.ContainerPort) error {
	for _, port := range ports {
		address := ":" + strconv.Itoa(int(port.ContainerPort))
		var err error
		if port.Protocol == corev1.ProtocolUDP {
			err = p.echoUDP(address)
		} else {
			err = p.echoHTTP(address)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (p *pod) echoHTTP(address string) error {
	listener, err := p.host.Listen("tcp", address)
	if err != nil {
		return err
	}
	server := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			p.count()
			client, _ := netip.ParseAddrPort(r.RemoteAddr) // The zero value shows in the answer.
			w.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(w).Encode(answer{Pod: p.name, Client: unmap(client)}) // A client that has gone misses it.
		}),
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
	}
	go server.Serve(listener) // Until Close.
	p.closers = append(p.closers, server.Close)
	return nil
}

// echoUDP answers a datagram with the datagram, then the pod's name.
func (p *pod) echoUDP(address string) error {
	conn, err := p.host.ListenPacket("udp", address)
	if err != nil {
		return err
	}
	go func() {
		buffer := make([]byte, 64<<10)
		for {
			n, client, err := conn.ReadFrom(buffer)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				continue // Some earlier answer was refused.
			}
			p.count()
			_, _ = conn.WriteTo(append(buffer[:n:n], p.name...), client) // UDP promises nothing.
		}
	}()
	p.closers = append(p.closers, conn.Close)
	return nil
}

// coreDNS runs CoreDNS in the pod. It finds the API server as any pod does, by the address of the kubernetes Service.
func (p *pod) coreDNS(ctx context.Context, c *cluster) error {
	corefile, err := filepath.Abs(filepath.Join("testdata", "Corefile"))
	if err != nil {
		return err
	}
	cmd := exec.Command(c.binary("coredns"), "-conf", corefile)
	cmd.Dir = filepath.Join(c.dir, p.name) // Where the Corefile looks for the kubeconfig.
	if err := os.MkdirAll(cmd.Dir, 0o700); err != nil {
		return err
	}
	kubeconfig := filepath.Join(cmd.Dir, "kubeconfig")
	if err := c.kube.serviceAccountConfig(ctx, kubeconfig, "coredns", net.JoinHostPort(kubernetesService, "443")); err != nil {
		return err
	}
	server, err := c.run(p.host, p.name, cmd)
	if err != nil {
		return err
	}
	p.closers = append(p.closers, func() error { server.kill(); return nil })
	probe := "http://" + netip.AddrPortFrom(p.host.IPv4, 8181).String() + "/ready"
	return eventually(ctx, func() error {
		if err := server.ended(); err != nil {
			return err
		}
		return get(ctx, p.host, probe, nil)
	})
}

func unmap(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}
