// Package node is Fairlead on a node: it takes what the control plane says of the node, serves it to the node's Envoys,
// and leads the node's Service traffic to them.
//
// In come resources over xDS, Envoys that ask for their namespace to be joined to the node, and the kernel's news. Out go
// resources over a unix socket, links, routes and one nftables table, and an ACK to the control plane once the node really
// forwards. It decides nothing about Services: that is done before.
package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"

	"go.opentelemetry.io/otel/metric"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/trace"
	tracenoop "go.opentelemetry.io/otel/trace/noop"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	ktypes "k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/fairlead/fairlead/server/node/dataplane"
	"github.com/fairlead/fairlead/server/node/discovery"
	"github.com/fairlead/fairlead/server/node/envoyns"
	"github.com/fairlead/fairlead/server/node/launcher"
	"github.com/fairlead/fairlead/server/node/upstream"
	"github.com/fairlead/fairlead/server/xds"
	"github.com/fairlead/fairlead/translate/envoy"
)

// Config is what an agent needs.
type Config struct {
	Node        string            // The node's name, as in its Node object.
	Servers     []string          // The control plane's replicas, host:port; none if ServerEndpoints names them.
	DialOptions []grpc.DialOption // Transport credentials and identity.

	// Client asks the API server for the following two. It may be nil if neither is wanted.
	Client          kubernetes.Interface
	ServerEndpoints ktypes.NamespacedName // The Service whose endpoints are the control plane's replicas; empty: Servers are.
	DaemonSet       ktypes.NamespacedName // That of the agents, if any: when it is deleted and Run ends, the node is cleaned up.

	StateDir string // Where the last good state is kept. It must survive a restart of the node.
	RunDir   string // Where the unix sockets are.
	User     int    // Whom Envoy runs as, beside root the only one that the sockets are for.
	Admin    string // Address of health, metrics and status; empty for none.
	Healthz  string // Address at which the node answers for its health as kube-proxy does; empty for none.

	EnvoyNS   envoyns.Config
	Conntrack Conntrack
	// Who counts as a pod of this node: by source, and by the link that packets come by, whose name may end in * for the rest
	// of it. If both are empty, the sources that the Node object names, and those behind links that lead to pods.
	PodCIDRs      []netip.Prefix
	PodInterfaces []string

	NodePortAddresses []netip.Prefix // NodePorts are served on the node's addresses in these; empty: on the Node's first address of each family.

	Traces  trace.TracerProvider // Nil means none.
	Meters  metric.MeterProvider // Nil means none.
	Metrics http.Handler         // What /metrics answers with; nil if Meters is.

	Log *slog.Logger // Nil means slog.Default.
}

// ProxySocket returns the path of the socket at which an agent waits for proxies.
func ProxySocket(runDir string) string { return filepath.Join(runDir, "proxy.sock") }

// XDSSocket returns the path of the socket at which an agent serves its Envoys.
func XDSSocket(runDir string) string { return filepath.Join(runDir, "xds.sock") }

// AdminSocket returns the path of the socket at which an Envoy instance serves its admin interface.
func AdminSocket(runDir string, id envoyns.ID) string {
	return filepath.Join(envoyDir(runDir), fmt.Sprintf("admin-%d.sock", id))
}

// statePath is the file that holds the last good state, and instancePath the one that remembers the current Envoy.
func statePath(stateDir string) string    { return filepath.Join(stateDir, "last-good") }
func instancePath(stateDir string) string { return filepath.Join(stateDir, "generation") }

// replicasPath is the file that remembers where the control plane's replicas are.
func replicasPath(stateDir string) string { return filepath.Join(stateDir, "replicas") }

// envoyDir is the folder that Envoy may write to.
func envoyDir(runDir string) string { return filepath.Join(runDir, "envoy") }

// Agent is one node's agent.
type Agent struct {
	config     Config
	log        *slog.Logger
	upstream   *upstream.Client
	reconciler *reconciler
	xds        *xds.Server

	replicas  *discovery.Replicas  // Nil if the addresses are given.
	daemonSet *discovery.DaemonSet // Nil if the agent belongs to none.
}

// types are what the agent asks the control plane for, what is referred to before what refers to it.
var types = []string{envoy.NodeType, envoy.ClusterType, envoy.AssignmentType, envoy.FrontendType}

// New returns an agent that has touched nothing but its state file.
func New(config Config) (*Agent, error) {
	if config.Node == "" {
		return nil, errors.New("no node name: give the name of the Node object that the agent runs on")
	}
	if len(config.Servers) == 0 && config.ServerEndpoints.Name == "" {
		return nil, errors.New("no control plane: give addresses of its replicas, or the Service whose endpoints they are")
	}
	if err := config.EnvoyNS.Validate(); err != nil {
		return nil, err
	}
	log := config.Log
	if log == nil {
		log = slog.Default()
	}
	if err := makeFolders(config); err != nil {
		return nil, err
	}
	up, err := upstream.New(upstream.Config{
		Node: config.Node, Addresses: config.Servers, Types: types, DialOptions: config.DialOptions,
		StatePath: statePath(config.StateDir), Logger: log,
	})
	if err != nil {
		return nil, err
	}
	table, err := dataplane.New(config.EnvoyNS)
	if err != nil {
		return nil, err
	}
	a := &Agent{config: config, log: log, upstream: up}
	a.askCluster()
	a.reconciler = newReconciler(config, log, up, table)
	a.xds = xds.New(xds.Config{Cache: a.reconciler.cache, Log: log})
	traces, meters := config.Traces, config.Meters
	if traces == nil {
		traces = tracenoop.NewTracerProvider()
	}
	if meters == nil {
		meters = metricnoop.NewMeterProvider()
	}
	a.reconciler.tracer = traces.Tracer("fairlead/agent")
	if a.reconciler.instruments, err = a.newInstruments(meters.Meter("fairlead/agent")); err != nil {
		return nil, fmt.Errorf("metrics: %w", err)
	}
	return a, nil
}

// askCluster prepares what the API server is asked about.
func (a *Agent) askCluster() {
	if a.config.ServerEndpoints.Name != "" {
		a.replicas = discovery.NewReplicas(discovery.ReplicasConfig{
			Client: a.config.Client, Service: a.config.ServerEndpoints, Path: replicasPath(a.config.StateDir), Log: a.log,
		})
		a.upstream.SetAddresses(a.replicas.Remembered())
	}
	if a.config.DaemonSet.Name != "" {
		a.daemonSet = discovery.NewDaemonSet(a.config.Client, a.config.DaemonSet, a.log)
	}
}

// Run serves the node until ctx ends, once no other agent does. What it built on the node stays: the node forwards without
// its agent. Only when the agents' DaemonSet has been deleted nothing stays.
func (a *Agent) Run(ctx context.Context) (err error) {
	locked, err := lock(ctx, a.config.RunDir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, locked.Close()) }()
	if err := a.serve(ctx); err != nil || a.daemonSet == nil || !a.daemonSet.Deleted() {
		return err
	}
	a.log.Info("the agents' DaemonSet was deleted: cleaning up the node")
	return cleanup(context.WithoutCancel(ctx), a.config)
}

// serve runs all parts until ctx ends or one fails.
func (a *Agent) serve(ctx context.Context) error {
	if err := a.config.Conntrack.apply(); err != nil {
		a.log.Warn("connection tracking is not set as configured", "error", err)
	}
	proxies, err := listen(ProxySocket(a.config.RunDir), 0)
	if err != nil {
		return err
	}
	envoys, err := listen(XDSSocket(a.config.RunDir), a.config.User)
	if err != nil {
		return errors.Join(err, proxies.Close())
	}
	group, ctx := errgroup.WithContext(ctx)
	if a.config.Admin != "" {
		group.Go(func() error { return a.serveAdmin(ctx) })
	}
	if a.config.Healthz != "" {
		group.Go(func() error {
			return serveProxyHealth(ctx, a.config.Healthz, proxyHealthHandler(a.reconciler.status.Load), a.log)
		})
	}
	group.Go(func() error { return launcher.Listen(ctx, proxies, a.reconciler.requests) })
	group.Go(func() error { return a.xds.Serve(ctx, envoys) })
	group.Go(func() error { return dataplane.Watch(ctx, a.reconciler.disturbed) })
	group.Go(func() error { return envoyns.Watch(ctx, a.reconciler.links) })
	group.Go(func() error { return a.upstream.Run(ctx) })
	if a.replicas != nil {
		group.Go(func() error { return a.replicas.Run(ctx, a.upstream.SetAddresses) })
	}
	if a.daemonSet != nil {
		group.Go(func() error { return a.daemonSet.Run(ctx) })
	}
	group.Go(func() error {
		defer a.reconciler.checks.Close()
		return a.reconciler.run(ctx)
	})
	return group.Wait()
}

// makeFolders makes the folders of an agent, for root and, where it has to write, for Envoy's user.
func makeFolders(config Config) error {
	for _, dir := range []struct {
		path string
		mode os.FileMode
	}{{config.StateDir, 0o700}, {config.RunDir, 0o711}, {envoyDir(config.RunDir), 0o700}} {
		if err := os.MkdirAll(dir.path, dir.mode); err != nil {
			return fmt.Errorf("make folder: %w", err)
		}
	}
	if err := os.Chown(envoyDir(config.RunDir), config.User, config.User); err != nil {
		return fmt.Errorf("give a folder to Envoy's user: %w", err)
	}
	return nil
}

// listen makes a unix socket that only one user, and root, can connect to, in the place of one that an earlier agent left
// behind. It is made in a folder that only root can enter, since a socket's mode cannot be set before it listens.
func listen(path string, user int) (*net.UnixListener, error) {
	private, err := os.MkdirTemp(filepath.Dir(path), ".")
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	defer os.RemoveAll(private)
	made := filepath.Join(private, "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: made, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	// The next agent's socket may be at the path by the time this one closes.
	l.SetUnlinkOnClose(false)
	if err := errors.Join(os.Chmod(made, 0o600), os.Chown(made, user, user), os.Rename(made, path)); err != nil {
		return nil, errors.Join(fmt.Errorf("socket: %w", err), l.Close())
	}
	return l, nil
}

// Cleanup removes everything that agents made on this node: tables, links, routes, rules, sockets and the last good state.
// Established connections through Fairlead end with it. It waits for an agent that still runs to end, until ctx does.
func Cleanup(ctx context.Context, config Config) error {
	if _, err := os.Stat(config.RunDir); errors.Is(err, os.ErrNotExist) {
		return cleanup(ctx, config) // Nobody can hold a lock.
	}
	locked, err := lock(ctx, config.RunDir)
	if err != nil {
		return err
	}
	return errors.Join(cleanup(ctx, config), locked.Close())
}

// cleanup is Cleanup for who holds the lock.
func cleanup(ctx context.Context, config Config) error {
	errs := []error{dataplane.Cleanup(ctx, config.EnvoyNS), envoyns.RemoveAll(config.EnvoyNS)}
	for _, path := range []string{
		ProxySocket(config.RunDir), XDSSocket(config.RunDir), envoyDir(config.RunDir), lockPath(config.RunDir),
		statePath(config.StateDir), instancePath(config.StateDir), replicasPath(config.StateDir),
	} {
		errs = append(errs, os.RemoveAll(path))
	}
	// The folders may be mount points, or hold what is not ours: then they stay.
	_, _ = os.Remove(config.RunDir), os.Remove(config.StateDir)
	return errors.Join(errs...)
}
