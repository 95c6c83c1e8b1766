package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/client-go/kubernetes"
	"k8s.io/klog/v2"

	"github.com/fairlead/fairlead/server/controlplane"
	"github.com/fairlead/fairlead/server/controlplane/events"
	"github.com/fairlead/fairlead/server/ops/telemetry"
	"github.com/fairlead/fairlead/server/source"
	"github.com/fairlead/fairlead/translate/grpc"
)

// flushTimeout bounds the export of the last spans when the process stops.
const flushTimeout = 2 * time.Second

// serveFlags are the flags of fairlead serve.
type serveFlags struct {
	directories      []string
	kubeconfig       string
	pod              string
	serverEndpoints  string
	serviceProxyName string
	source           string
}

func newServeCommand() *cobra.Command {
	config := controlplane.Config{}
	var (
		log   logFlags
		flags serveFlags
		proof serverIdentityFlags
	)
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the control plane: watch Services and serve xDS to node agents and gRPC programs",
		Long: `Watches Services, EndpointSlices and Nodes, of an API server or in a directory of manifests, and serves what
follows from them over xDS to the agents of the nodes. It keeps nothing on disk; any number of replicas may run.

On an address that is not loopback, xDS is served over TLS, and only to agents and gRPC programs that prove who they are
by service-account tokens, which the API server is asked about.

Health, metrics and, on loopback, /debug/status are answered on the admin address. Traces are exported by OTLP if the
OTEL_ variables of the environment ask for it.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			logger, err := log.logger()
			if err != nil {
				return err
			}
			config.Log = logger
			klog.SetSlogLogger(logger) // client-go's reflectors log there.
			secure, err := proof.secure(config.Listen, logger)
			if err != nil {
				return err
			}
			if err := flags.configure(&config, &proof, secure); err != nil {
				return err
			}
			return runServe(cmd.Context(), config)
		},
	}
	set := cmd.Flags()
	set.StringVar(&config.Admin, "admin", "127.0.0.1:19000", "Address of health, metrics and status; status is served on loopback only.")
	set.StringVar((*string)(&config.Domain), "cluster-domain", string(grpc.DefaultDomain), "DNS domain of the cluster, by which proxyless gRPC clients name Services.")
	set.StringSliceVar(&flags.directories, "directory", nil, "Folder of manifests, or a manifest, for --source directory; may be repeated.")
	set.StringVar(&flags.kubeconfig, "kubeconfig", "", "Kubeconfig file of the API server; by default $KUBECONFIG, ~/.kube/config or the pod's service account.")
	set.StringVar(&config.Listen, "listen", "127.0.0.1:18000", "Address that serves xDS.")
	set.StringVar(&flags.pod, "pod", os.Getenv("POD_NAME"), "Name of the pod of this replica, for --server-endpoints; by default $POD_NAME.")
	set.StringVar(&flags.serverEndpoints, "server-endpoints", "", "Service, as NAMESPACE/NAME, whose ready endpoints are the control plane's replicas. They share in writing Kubernetes Events about objects with problems and nodes that do not forward; by default none are written.")
	set.StringVar(&flags.serviceProxyName, "service-proxy-name", "", "Serve the Services whose label service.kubernetes.io/service-proxy-name has this value; by default those without the label.")
	set.StringVar(&flags.source, "source", "kubernetes", "Where the objects come from: kubernetes or directory.")
	log.add(set)
	proof.add(set)
	return cmd
}

// configure sets the source and, if xDS is to be secure, the certificates and the authenticator of clients.
func (f *serveFlags) configure(config *controlplane.Config, proof *serverIdentityFlags, secure bool) (err error) {
	var client kubernetes.Interface
	if secure || f.source == "kubernetes" {
		if client, err = source.NewClient(f.kubeconfig); err != nil && secure {
			return usagef("--listen %s: an API server has to authenticate clients, unless the address is on loopback or --insecure is given: %w", config.Listen, err)
		}
		if err != nil {
			return err
		}
	}
	if config.Source, err = f.newSource(client, config.Log); err != nil {
		return err
	}
	if config.Events, err = f.newEvents(client); err != nil {
		return err
	}
	if secure {
		return proof.configure(config, client)
	}
	return nil
}

// newEvents returns how to write Kubernetes Events, nil if none are to be written.
func (f *serveFlags) newEvents(client kubernetes.Interface) (*events.Config, error) {
	if f.serverEndpoints == "" {
		return nil, nil
	}
	service, err := parseObject("--server-endpoints", f.serverEndpoints)
	switch {
	case err != nil:
		return nil, err
	case f.source != "kubernetes":
		return nil, usagef("--server-endpoints needs --source kubernetes: Events are about objects of an API server")
	case f.pod == "":
		return nil, usagef("--server-endpoints needs --pod, the name of this replica's pod")
	}
	return &events.Config{Client: client, Service: service, Pod: f.pod}, nil
}

func (f *serveFlags) newSource(client kubernetes.Interface, log *slog.Logger) (controlplane.Source, error) {
	switch {
	case f.source == "directory" && len(f.directories) == 0:
		return nil, usagef("--source directory needs --directory")
	case f.source == "directory":
		return source.NewDirectory(source.DirectoryConfig{Paths: f.directories, ServiceProxyName: f.serviceProxyName, Log: log}), nil
	case f.source != "kubernetes":
		return nil, usagef("--source %q: use kubernetes or directory", f.source)
	case len(f.directories) > 0:
		return nil, usagef("--directory needs --source directory")
	}
	return source.NewKubernetes(source.KubernetesConfig{Client: client, ServiceProxyName: f.serviceProxyName}), nil
}

// runServe runs a control plane that exports traces as the OTEL_ variables configure.
func runServe(ctx context.Context, config controlplane.Config) (err error) {
	var flush func(context.Context) error
	if config.Traces, flush, err = telemetry.Traces(ctx, "fairlead"); err != nil {
		return err
	}
	if config.Meters, config.Metrics, err = telemetry.Metrics(build()); err != nil {
		return err
	}
	config.Version, _ = build()
	s, err := controlplane.New(config)
	if err != nil {
		return err
	}
	err = s.Run(ctx)
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTimeout)
	defer cancel()
	return errors.Join(err, flush(last))
}
