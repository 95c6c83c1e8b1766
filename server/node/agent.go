// Package node is the node agent: it subscribes to the node's resources at the control plane, serves xDS to the node's Envoys and
// programs nftables, so that the kernel sends the node's Service traffic to them.
//
// In come resources over xDS, requests of proxies to join their namespaces to the node, and notifications of the kernel. Out go
// resources over a unix socket, links, routes and nftables tables, and an ACK to the control plane once the node really
// forwards. The agent decides nothing about Services: the control plane does.
package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"

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

// Config configures an agent.
type Config struct {
	Node        string            // The node's name, as in its Node object.
	Version     string            // The agent's version, for the control plane to show; may be empty.
	Servers     []string          // The control plane's replicas, host:port; empty if ServerEndpoints is set.
	DialOptions []grpc.DialOption // Transport credentials and identity.

	// Client watches the following two at the API server. It may be nil if both are empty.
	Client          kubernetes.Interface
	ServerEndpoints ktypes.NamespacedName // The Service whose endpoints are the control plane's replicas; empty: Servers has them.
	DaemonSet       ktypes.NamespacedName // That of the agents, if any: if it is deleted, Run cleans up the node at its end.

	StateDir string // Folder of the last good state. It must survive a restart of the node.
	RunDir   string // Folder of the unix sockets.
	User     int    // UID and GID that Envoy runs as; beside root only that user can connect to Envoy's sockets.
	Admin    string // Address of health, metrics and status; empty for none.

	// Addresses at which the agent answers as kube-proxy does, each empty for none.
	Healthz      string // /healthz and /livez.
	ProxyMetrics string // /proxyMode, /healthz and /metrics.

	EnvoyNS   envoyns.Config
	Conntrack Conntrack
	// Packets count as those of the node's pods by their source, or by the link on which they arrive, whose name may end in *
	// for any rest. If both are empty: by the Node object's prefixes, and by the links to pods.
	PodCIDRs      []netip.Prefix
	PodInterfaces []string

	Splice bool // Take pods' connections off at the pods' links, where the kernel can.

	NodePortAddresses []netip.Prefix // The node serves NodePorts on its addresses in these; empty: on the Node's first address of each family.

	Traces  trace.TracerProvider // Nil means none.
	Meters  metric.MeterProvider // Nil means none.
	Metrics http.Handler         // Serves /metrics; nil if Meters is nil.

	Log *slog.Logger // Nil means slog.Default.
}

// Agent is one node's agent.
type Agent struct {
	config     Config
	log        *slog.Logger
	upstream   *upstream.Client
	reconciler *reconciler
	xds        *xds.Server

	replicas  *discovery.Replicas  // Nil if Config.Servers has the addresses.
	daemonSet *discovery.DaemonSet // Nil without Config.DaemonSet.
}

// types are the type URLs to which the agent subscribes, in order: a type comes before those that refer to it.
var types = []string{envoy.NodeType, envoy.ClusterType, envoy.AssignmentType, envoy.FrontendType}

// New returns an agent. It makes the agent's folders and reads its files, and changes nothing else on the node.
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
		StatePath: statePath(config.StateDir), Version: config.Version, Logger: log,
	})
	if err != nil {
		return nil, err
	}
	table, err := dataplane.New(config.EnvoyNS, dataplane.NewMonitor())
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

// askCluster prepares the agent's watches of the API server.
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

// Run waits until no other agent serves the node, and then serves it until ctx ends. What it built on the node stays: the node
// forwards without its agent. Only if the agents' DaemonSet has been deleted does Run remove everything.
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
		a.log.Warn("cannot configure connection tracking", "error", err)
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
	for address, handler := range map[string]http.Handler{
		a.config.Healthz:      proxyHealthHandler(a.reconciler.status.Load),
		a.config.ProxyMetrics: proxyMetricsHandler(a.config.Metrics),
	} {
		if address != "" {
			group.Go(func() error { return serveAsProxy(ctx, address, handler, a.log) })
		}
	}
	group.Go(func() error { return launcher.Listen(ctx, proxies, a.reconciler.requests) })
	group.Go(func() error { return a.xds.Serve(ctx, envoys) })
	group.Go(func() error { return a.reconciler.monitor.Watch(ctx) })
	group.Go(func() error { return a.config.EnvoyNS.Watch(ctx, a.reconciler.changes) })
	group.Go(func() error { return a.reconciler.watchEnvoys(ctx) })
	group.Go(func() error { return watchHost(ctx, a.config.Node, hostInterval, a.reconciler.found, a.log) })
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
