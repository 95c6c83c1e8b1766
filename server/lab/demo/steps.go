package demo

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/fairlead/fairlead/server/lab"
)

// steps are the demo's steps. Each prints what it measured, and fails if that is not what its title promises.
var steps = []struct {
	title string
	show  func(*demo, context.Context) error
}{
	{"The Service web, and the pods behind it", (*demo).showService},
	{"Who answers: new connections from a pod, over IPv4 and IPv6", (*demo).showAnswers},
	{"Which source address the pods see", (*demo).showSources},
	{"A NodePort, from a host outside the cluster", (*demo).showNodePort},
	{"DNS-sized datagrams over UDP", (*demo).showDatagrams},
	{"A Service without endpoints refuses at once", (*demo).showRefusal},
	{"A pod joins and another leaves, while requests are running", (*demo).showRollingChange},
	{"Envoy is replaced, while requests are running", (*demo).showReplacement},
}

// requestTimeout is far above what any request here takes.
const requestTimeout = 5 * time.Second

func ask(ctx context.Context, from *lab.Host, r lab.Request) (lab.Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	return from.Ask(ctx, r)
}

// web returns the addresses of the Service web of both families.
func (d *demo) web() (v4, v6 netip.AddrPort, err error) {
	if v4, err = d.frontend("web", corev1.IPv4Protocol); err != nil {
		return v4, v6, err
	}
	v6, err = d.frontend("web", corev1.IPv6Protocol)
	return v4, v6, err
}

func (d *demo) showService(context.Context) error {
	web, web6, err := d.web()
	if err != nil {
		return err
	}
	port := d.services["web"].Spec.Ports[0]
	d.out.table([][]string{
		{"SERVICE", "CLUSTER-IP", "PORT", "NODE-PORT"},
		{"default/web", web.Addr().String() + ", " + web6.Addr().String(), fmt.Sprintf("%d/%s", port.Port, port.Protocol), fmt.Sprint(port.NodePort)},
	})
	rows := [][]string{{"POD", "NODE", "ADDRESS"}}
	for _, p := range d.webPods() {
		rows = append(rows, []string{p.Name, p.node.Name, fmt.Sprintf("%s, %s", p.IPv4, p.IPv6)})
	}
	d.out.table(rows)
	return nil
}

// connect makes a number of connections from a host, and fails if one of them does.
func connect(ctx context.Context, from *lab.Host, to netip.AddrPort, requests int) (lab.Report, error) {
	load, err := from.StartLoad(newConnections(to))
	if err != nil {
		return lab.Report{}, err
	}
	_, err = load.WaitMore(ctx, requests)
	r := load.Stop()
	if err != nil {
		return r, err
	}
	return r, noFailures(r)
}

// showAnswers makes a number of connections and expects every pod to get some.
func (d *demo) showAnswers(ctx context.Context) error {
	for _, family := range []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol} {
		web, err := d.frontend("web", family)
		if err != nil {
			return err
		}
		r, err := connect(ctx, d.client, web, 300)
		if err != nil {
			return err
		}
		if want := len(d.webPods()); len(r.Answers) != want {
			return fmt.Errorf("%d of %d pods answered at %s: %s", len(r.Answers), want, web, answers(r))
		}
		d.out.result("%s: %s; p50 %s, p99 %s", web, answers(r), milliseconds(r.P50), milliseconds(r.P99))
	}
	return nil
}

// showSources sends requests from each kind of client until a pod on this node and one on the other have answered.
func (d *demo) showSources(ctx context.Context) error {
	web, web6, err := d.web()
	if err != nil {
		return err
	}
	node := d.nodes[0]
	self := d.webPods()[0]
	rows := [][]string{{"CLIENT", "DIALS", "PODS SEE"}}
	for _, tc := range []struct {
		what string
		from *lab.Host
		to   netip.AddrPort
		want netip.Addr
		why  string
	}{
		{"pod client", d.client, web, d.client.IPv4, "its own address"},
		{"pod client", d.client, web6, d.client.IPv6, "its own address"},
		{"node " + node.Name, node.Host, web, node.IPv4, "the node's address"},
		{"pod " + self.Name + ", served by itself", self.Host, web, self.node.IPv4, "the node's address: it would not take an answer from itself"},
	} {
		if err := d.expectSource(ctx, tc.from, tc.to, tc.want); err != nil {
			return err
		}
		rows = append(rows, []string{tc.what, tc.to.String(), fmt.Sprintf("%s (%s)", tc.want, tc.why)})
	}
	d.out.table(rows)
	return nil
}

// expectSource asks until each pod of web that matters has answered, and expects them to see a source. For a client that
// is itself one of them only its own answers matter: the others see its own address.
func (d *demo) expectSource(ctx context.Context, from *lab.Host, to netip.AddrPort, want netip.Addr) error {
	pending := map[string]bool{}
	for _, p := range d.webPods() {
		pending[p.Name] = true
	}
	own := pending[from.Name]
	if own {
		pending = map[string]bool{from.Name: true}
	}
	for attempts := 0; len(pending) > 0; attempts++ {
		if attempts == 1000 {
			return fmt.Errorf("%s never got an answer from %v at %s", from.Name, pending, to)
		}
		a, err := ask(ctx, from, lab.Request{Network: lab.HTTP, To: to})
		if err != nil {
			return err
		}
		if (!own || a.Server == from.Name) && a.Client.Addr() != want {
			return fmt.Errorf("%s saw %s as %s, not as %s", a.Server, from.Name, a.Client.Addr(), want)
		}
		delete(pending, a.Server)
	}
	return nil
}

func (d *demo) showNodePort(ctx context.Context) error {
	port := d.services["web"].Spec.Ports[0].NodePort
	for _, n := range d.nodes {
		to := netip.AddrPortFrom(n.IPv4, uint16(port))
		r, err := connect(ctx, d.outside, to, 100)
		if err != nil {
			return err
		}
		if len(r.Clients) != 1 || r.Clients[n.IPv4] == 0 {
			return fmt.Errorf("pods saw %v, not only the node's address %s", r.Clients, n.IPv4)
		}
		d.out.result("%s: %s; they see %s, as externalTrafficPolicy Cluster has it", to, answers(r), n.IPv4)
	}
	return nil
}

func (d *demo) showDatagrams(ctx context.Context) error {
	for _, family := range []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol} {
		dns, err := d.frontend("dns", family)
		if err != nil {
			return err
		}
		want := d.client.IPv4
		if family == corev1.IPv6Protocol {
			want = d.client.IPv6
		}
		var sizes []string
		for _, size := range []int{40, 512, 1232, 4096} {
			a, err := ask(ctx, d.client, lab.Request{Network: lab.UDP, To: dns, Size: size})
			if err != nil {
				return fmt.Errorf("%d bytes: %w", size, err)
			}
			if a.Client.Addr() != want {
				return fmt.Errorf("%s saw %s, not the client's %s", a.Server, a.Client.Addr(), want)
			}
			sizes = append(sizes, fmt.Sprint(size))
		}
		d.out.result("%s: %s bytes there and back; the pod sees %s, the client's own address", dns, strings.Join(sizes, ", "), want)
	}
	return nil
}

func (d *demo) showRefusal(ctx context.Context) error {
	empty, err := d.frontend("empty", corev1.IPv4Protocol)
	if err != nil {
		return err
	}
	for _, from := range []*lab.Host{d.client, d.nodes[0].Host} {
		start := time.Now()
		a, err := ask(ctx, from, lab.Request{Network: lab.HTTP, To: empty})
		took := time.Since(start)
		if lab.FailureOf(err) != lab.Refused {
			return fmt.Errorf("%s got answer %q and error %w, not a refusal", from.Name, a, err)
		}
		d.out.result("%s: %s is refused after %s", empty, from.Name, milliseconds(took))
	}
	return nil
}
