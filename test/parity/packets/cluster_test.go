package packets

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/fairlead/fairlead/server/lab"
	"github.com/fairlead/fairlead/server/lab/fleet"
	"github.com/fairlead/fairlead/test/e2e/apiserver"
)

// patience bounds every wait for a condition.
const patience = time.Minute

// worlds are the two clusters and the API server of both, which is on Fairlead's control plane's host. On kube-proxy's that
// address leads to it.
type worlds struct {
	dir      string // Logs, keys and state.
	programs string // What test/e2e/build has built.
	envoy    string

	kubeProxy, fairlead *world
	api                 *apiserver.Server
	fleet               *fleet.Fleet
	proxies             []*lab.Process
}

// startWorlds returns when both forward. They end with the test; the logs stay if it has failed.
func startWorlds(t *testing.T) *worlds {
	t.Helper()
	root, err := filepath.Abs("../../..")
	if err != nil {
		t.Fatal(err)
	}
	rest.SetDefaultWarningHandler(rest.NoWarnings{}) // External IPs are deprecated, says the API server of each Service.
	w := &worlds{programs: filepath.Join(root, ".cache", "e2e")}
	if w.dir, err = os.MkdirTemp("", "fairlead-packets-"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		err := w.stop()
		if t.Failed() || *keep {
			t.Log("logs and state are in", w.dir)
		} else {
			err = errors.Join(err, os.RemoveAll(w.dir))
		}
		if err != nil {
			t.Error(err)
		}
	})
	for _, program := range []string{"etcd", "kube-apiserver", "kube-proxy", "fairlead"} {
		if _, err := os.Stat(filepath.Join(w.programs, program)); err != nil {
			t.Fatalf("%v: run go -C test/e2e run ./build -for node in the checkout, as make parity does", err)
		}
	}
	if w.envoy, err = fleet.FindEnvoy(root); err != nil {
		t.Fatal(err)
	}
	if w.fairlead, err = newWorld("Fairlead", ""); err != nil {
		t.Fatal(err)
	}
	if w.kubeProxy, err = newWorld("kube-proxy", ".kube-proxy"); err != nil {
		t.Fatal(err)
	}
	w.api, err = apiserver.Start(t.Context(), apiserver.Config{
		Host: w.fairlead.control, Programs: w.programs, Dir: filepath.Join(w.dir, "kubernetes"), Logs: w.dir,
	})
	if err == nil {
		err = errors.Join(w.share(), w.registerNodes(t.Context()))
	}
	if err == nil {
		err = errors.Join(w.startKubeProxies(), w.startFairlead(t.Context()))
	}
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// stop ends everything, last first.
func (w *worlds) stop() error {
	if w.fleet != nil {
		w.fleet.Stop()
	}
	for _, p := range w.proxies {
		p.Stop()
	}
	if w.api != nil {
		w.api.Stop()
	}
	return errors.Join(w.kubeProxy.close(), w.fairlead.close())
}

// share leads the API server's address in kube-proxy's world to the API server.
func (w *worlds) share() error {
	l, err := w.kubeProxy.control.Listen("tcp", w.api.Address())
	if err != nil {
		return err
	}
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return // The host was removed, or the process ends.
			}
			go func() {
				defer client.Close()
				server, err := w.fairlead.control.DialContext(context.Background(), "tcp", w.api.Address())
				if err != nil {
					return
				}
				defer server.Close()
				go pipe(client, server)
				pipe(server, client)
			}()
		}
	}()
	return nil
}

// pipe copies until either side ends, and then ends both.
func pipe(to, from net.Conn) {
	_, _ = io.Copy(to, from)
	to.Close()
	from.Close()
}

// registerNodes makes the Node objects. They hold in both worlds.
func (w *worlds) registerNodes(ctx context.Context) error {
	for i, name := range []string{nodeHere, nodeThere} {
		n := w.fairlead.nodes[i]
		if k := w.kubeProxy.nodes[i]; k.IPv4 != n.IPv4 || k.IPv6 != n.IPv6 || k.PodCIDR4 != n.PodCIDR4 || k.PodCIDR6 != n.PodCIDR6 {
			return fmt.Errorf("node %s has other addresses in the other world", name)
		}
		object := &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelHostname: name}},
			Spec:       corev1.NodeSpec{PodCIDR: n.PodCIDR4.String(), PodCIDRs: []string{n.PodCIDR4.String(), n.PodCIDR6.String()}},
		}
		created, err := w.api.Client.CoreV1().Nodes().Create(ctx, object, metav1.CreateOptions{})
		if err != nil {
			return err
		}
		for _, family := range families {
			a := corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: address(n.Host, family).String()}
			created.Status.Addresses = append(created.Status.Addresses, a)
		}
		if _, err := w.api.Client.CoreV1().Nodes().UpdateStatus(ctx, created, metav1.UpdateOptions{}); err != nil {
			return err
		}
	}
	return nil
}

// kubeProxyConfig is kubeadm's, but that connection tracking's limits, which are the kernel's as a whole, are left alone.
const kubeProxyConfig = `apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
clusterCIDR: 10.244.0.0/16,fd00:10:244::/48
clientConnection: {kubeconfig: %q}
conntrack: {maxPerCore: 0, min: 0, tcpCloseWaitTimeout: 1h0m0s, tcpEstablishedTimeout: 0s}
`

func (w *worlds) startKubeProxies() error {
	config := filepath.Join(w.dir, "kube-proxy.yaml")
	if err := os.WriteFile(config, fmt.Appendf(nil, kubeProxyConfig, w.api.AdminKubeconfig()), 0o644); err != nil {
		return err
	}
	for i, name := range []string{nodeHere, nodeThere} {
		p, err := w.kubeProxy.nodes[i].Run("kube-proxy", filepath.Join(w.dir, "kube-proxy-"+name+".log"),
			exec.Command(filepath.Join(w.programs, "kube-proxy"), "--config", config, "--hostname-override", name))
		if err != nil {
			return err
		}
		w.proxies = append(w.proxies, p)
	}
	return nil
}

func (w *worlds) startFairlead(ctx context.Context) (err error) {
	w.fleet, err = fleet.Start(fleet.Config{
		Fairlead: filepath.Join(w.programs, "fairlead"),
		Envoy:    w.envoy,
		Dir:      w.dir,
		Source:   []string{"--source", "kubernetes", "--kubeconfig", w.api.AdminKubeconfig()},
		Server:   w.fairlead.control,
		Nodes:    w.fairlead.nodes,
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for _, n := range w.fairlead.nodes {
		if _, err := w.fleet.Await(ctx, n.Name, fleet.Ready); err != nil {
			return err
		}
	}
	return nil
}

// ended returns an error when one of the programs has.
func (w *worlds) ended() error {
	errs := []error{w.fleet.Check()}
	for _, p := range w.proxies {
		errs = append(errs, p.Ended())
	}
	return errors.Join(errs...)
}

// apply creates the Services and returns when all four nodes forward accordingly. A Service that has all that matters is created
// last, and its slices after all others: a node that forwards to it has seen whatever was created before.
func (w *worlds) apply(ctx context.Context, all []*service) error {
	marker := &service{number: 700, internal: "Cluster", external: "Cluster", state: states[0], variant: variants[0]}
	if err := w.each(ctx, all, w.create); err != nil {
		return err
	}
	if err := w.create(ctx, marker); err != nil {
		return err
	}
	if err := w.each(ctx, all, w.createSlices); err != nil {
		return err
	}
	if err := w.createSlices(ctx, marker); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for _, world := range []*world{w.kubeProxy, w.fairlead} {
		for _, n := range world.nodes {
			for _, family := range families {
				if err := w.awaitAnswer(ctx, n.Host, marker.target(loadBalancer, family, netip.Addr{})); err != nil {
					return fmt.Errorf("%s: %w", world.name, err)
				}
			}
		}
	}
	return nil
}

// writers is how many requests are made to the API server at once.
const writers = 8

// each does something for all Services, several at a time.
func (w *worlds) each(ctx context.Context, all []*service, do func(context.Context, *service) error) error {
	next, failed := make(chan *service), make(chan error, writers)
	for range writers {
		go func() {
			var errs []error
			for s := range next {
				errs = append(errs, do(ctx, s))
			}
			failed <- errors.Join(errs...)
		}()
	}
	for _, s := range all {
		next <- s
	}
	close(next)
	var errs []error
	for range writers {
		errs = append(errs, <-failed)
	}
	return errors.Join(errs...)
}

// create creates a Service with its status.
func (w *worlds) create(ctx context.Context, s *service) error {
	client := w.api.Client.CoreV1().Services(metav1.NamespaceDefault)
	created, err := client.Create(ctx, s.object(), metav1.CreateOptions{})
	if err != nil {
		return err
	}
	created.Status.LoadBalancer.Ingress = s.ingress()
	_, err = client.UpdateStatus(ctx, created, metav1.UpdateOptions{})
	return err
}

func (w *worlds) createSlices(ctx context.Context, s *service) error {
	addressOf := func(p place, family corev1.IPFamily) netip.Addr { return address(w.fairlead.servers[p], family) }
	for _, slice := range s.slices(addressOf) {
		if _, err := w.api.Client.DiscoveryV1().EndpointSlices(metav1.NamespaceDefault).Create(ctx, slice, metav1.CreateOptions{}); err != nil {
			return err
		}
	}
	return nil
}

// awaitAnswer asks again and again until somebody answers.
func (w *worlds) awaitAnswer(ctx context.Context, from *lab.Host, to netip.AddrPort) error {
	poll := time.NewTicker(50 * time.Millisecond)
	defer poll.Stop()
	for {
		once, cancel := context.WithTimeout(ctx, time.Second)
		_, err := from.Ask(once, lab.Request{Network: lab.TCP, To: to})
		cancel()
		if err == nil {
			return nil
		}
		if ended := w.ended(); ended != nil {
			return ended
		}
		select {
		case <-ctx.Done():
			return err
		case <-poll.C:
		}
	}
}

// conditions says when and where the worlds were.
func (w *worlds) conditions(took time.Duration) string {
	var kernel unix.Utsname
	if err := unix.Uname(&kernel); err != nil {
		return err.Error()
	}
	versions := []string{fmt.Sprintf("Linux %s, %d processors", unix.ByteSliceToString(kernel.Release[:]), runtime.NumCPU())}
	for _, command := range [][]string{{filepath.Join(w.programs, "kube-proxy"), "--version"}, {w.envoy, "--version"}, {"nft", "--version"}} {
		said, err := exec.Command(command[0], command[1:]...).Output()
		if err != nil {
			return err.Error()
		}
		versions = append(versions, filepath.Base(command[0])+" "+version.FindString(string(said)))
	}
	return fmt.Sprintf("%s, %s, as user %d; %s.",
		time.Now().UTC().Format(time.DateOnly), strings.Join(versions, ", "), os.Geteuid(), took.Round(time.Second))
}

// version finds a program's version in what it prints.
var version = regexp.MustCompile(`[0-9]+\.[0-9]+\.[0-9]+`)
