package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/fairlead/fairlead/server/lab"
	"github.com/fairlead/fairlead/test/e2e/apiserver"
)

// Images that the kubelets can run.
const (
	imageEcho    = "echo"    // Answers HTTP on the ports that the container declares.
	imageClient  = "client"  // Does nothing: tests dial from it.
	imageCoreDNS = "coredns" // The real one, as a process.
)

// quiet is for how long a terminating pod must not have been asked before it ends.
const quiet = 500 * time.Millisecond

// pod is a running Pod.
type pod struct {
	key  string // namespace/name
	name string
	uid  types.UID
	node *lab.Node
	host *lab.Host

	lastAsked   atomic.Int64 // Unix nanoseconds of the last request.
	terminating atomic.Bool

	mu      sync.Mutex         // Guards clients.
	clients map[netip.Addr]int // Requests so far, by the address that they came from.

	closers []func() error // What end closes, last first. Not changed after startPod.
}

// startPod makes a Pod's network namespace, with a number in its addresses, and starts what its image names.
func (c *cluster) startPod(ctx context.Context, node *lab.Node, number int, object *corev1.Pod) (_ *pod, err error) {
	p := &pod{key: object.Namespace + "/" + object.Name, name: object.Name, uid: object.UID, node: node, clients: map[netip.Addr]int{}}
	if p.host, err = node.AddPod(object.Name, number); err != nil {
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

// echo answers HTTP on every port that the container declares, in both families, and keeps count. The answer is the
// line that lab.Host.Ask reads.
func (p *pod) echo(ports []corev1.ContainerPort) error {
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		client, err := netip.ParseAddrPort(r.RemoteAddr)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		client = netip.AddrPortFrom(client.Addr().Unmap(), client.Port())
		p.count(client.Addr())
		fmt.Fprintln(w, lab.Answer{Server: p.name, Client: client})
	})
	for _, port := range ports {
		listener, err := p.host.Listen("tcp", fmt.Sprintf(":%d", port.ContainerPort))
		if err != nil {
			return err
		}
		server := &http.Server{Handler: handler, ReadHeaderTimeout: time.Minute}
		p.closers = append(p.closers, server.Close)
		go server.Serve(listener) // Until Close.
	}
	return nil
}

func (p *pod) count(client netip.Addr) {
	p.lastAsked.Store(time.Now().UnixNano())
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clients[client]++
}

// askedBy returns how many requests came from an address.
func (p *pod) askedBy(client netip.Addr) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.clients[client]
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
	if err := c.kube.serviceAccountConfig(ctx, kubeconfig, "coredns", net.JoinHostPort(apiserver.KubernetesService, "443")); err != nil {
		return err
	}
	server, err := p.host.Run("coredns", c.log(p.name), cmd)
	if err != nil {
		return err
	}
	p.closers = append(p.closers, func() error { server.Kill(); return nil })
	return eventually(ctx, func() error {
		if err := server.Ended(); err != nil {
			return err
		}
		return p.probe(ctx)
	})
}

// probe asks CoreDNS whether it is ready, as its Pod's readiness probe does.
func (p *pod) probe(ctx context.Context) error {
	client := &http.Client{Transport: &http.Transport{DialContext: p.host.DialContext, DisableKeepAlives: true}, Timeout: requestTimeout}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+netip.AddrPortFrom(p.host.IPv4, 8181).String()+"/ready", nil)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("not ready: %s", response.Status)
	}
	return nil
}
