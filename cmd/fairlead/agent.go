package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"

	"github.com/fairlead/fairlead/server/node"
	"github.com/fairlead/fairlead/server/node/discovery"
	"github.com/fairlead/fairlead/server/node/envoyns"
	"github.com/fairlead/fairlead/server/ops/telemetry"
	"github.com/fairlead/fairlead/server/source"
)

// Folders on a node. The first must survive a restart of the node, the second need not.
const (
	defaultStateDir = "/var/lib/fairlead"
	defaultRunDir   = "/run/fairlead"
)

func newAgentCommand() *cobra.Command {
	config := node.Config{EnvoyNS: envoyns.DefaultConfig(), Conntrack: node.DefaultConntrack()}
	var (
		log                logFlags
		proof              clientIdentityFlags
		cleanup            bool
		podCIDRs, nodePort []string
		api                agentClusterFlags
	)
	cmd := &cobra.Command{
		Use:   "agent --node NAME {--server HOST:PORT | --server-endpoints NAMESPACE/SERVICE}",
		Short: "Run the node agent: program nftables and serve xDS to the local Envoy",
		Long: `Subscribes to the control plane by xDS, serves xDS to the node's Envoys and programs nftables and policy routes.
The programmed state stays when the agent stops: the node forwards without it. --cleanup removes all of it.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			logger, err := log.logger()
			if err != nil {
				return err
			}
			if cleanup {
				return node.Cleanup(cmd.Context(), config)
			}
			if config.PodCIDRs, err = parsePrefixes("--pod-cidr", podCIDRs); err != nil {
				return err
			}
			if config.NodePortAddresses, err = parsePrefixes("--nodeport-addresses", nodePort); err != nil {
				return err
			}
			config.Log = logger
			if err := api.configure(&config); err != nil {
				return err
			}
			if config.DialOptions, err = proof.dialOptions(config.Servers); err != nil {
				return err
			}
			return runAgent(cmd.Context(), config)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&config.Admin, "admin", "127.0.0.1:19001", "Address of health, metrics and status; empty for none.")
	addProxyFlags(flags, &config)
	flags.BoolVar(&cleanup, "cleanup", false, "Remove everything that agents made on this node, such as nftables tables, links and routes, and exit.")
	flags.Uint32Var(&config.EnvoyNS.Mask, "mark-mask", config.EnvoyNS.Mask, "Six adjacent bits of packet and connection marks that no other program on the node uses.")
	flags.StringVar(&config.Node, "node", os.Getenv("NODE_NAME"), "Name of the Node object of this node; by default $NODE_NAME.")
	flags.StringSliceVar(&nodePort, "nodeport-addresses", nil, "Prefixes of the node's addresses on which it serves NodePorts; by default the Node object's first address of each family.")
	flags.StringSliceVar(&podCIDRs, "pod-cidr", nil, "Prefixes of sources that count as pods of this node; by default, and without --pod-interface, the Node object's podCIDRs and the sources behind links to pods.")
	flags.StringSliceVar(&config.PodInterfaces, "pod-interface", nil, "Links whose packets count as those of pods, by name or, with a * at the end, by the beginning of the name, such as cni0 or cali*.")
	flags.IntVar(&config.EnvoyNS.RulePriority, "rule-priority", config.EnvoyNS.RulePriority, "Priority of the node's policy routing rules.")
	flags.StringVar(&config.RunDir, "run-dir", defaultRunDir, "Folder of the unix sockets for Envoys.")
	flags.StringSliceVar(&config.Servers, "server", nil, "Addresses of the control plane's replicas, as host:port.")
	flags.BoolVar(&config.Splice, "splice", false, "Take pods' TCP connections to Services off at the pods' links by eBPF (Linux 6.6), so that policies see pod and endpoint; where the kernel refuses it they take the host's hooks.")
	flags.StringVar(&config.StateDir, "state-dir", defaultStateDir, "Folder of the last good state, from which the node forwards while no control plane answers.")
	flags.IntVar(&config.EnvoyNS.Table, "table", config.EnvoyNS.Table, "Number of the first of 64 routing tables that no other program on the node uses.")
	flags.IntVar(&config.User, "user", 0, "User that Envoy runs as: the same as --user of fairlead proxy.")
	api.add(flags)
	log.add(flags)
	proof.add(flags)
	return cmd
}

// addProxyFlags declares the flags that kube-proxy has, too, under the same names.
func addProxyFlags(flags *pflag.FlagSet, config *node.Config) {
	flags.StringVar(&config.Healthz, "healthz-bind-address", "", "Address at which the agent serves /healthz and /livez as kube-proxy does, such as :10256; empty for none.")
	flags.StringVar(&config.ProxyMetrics, "metrics-bind-address", "", "Address at which the agent serves /proxyMode, /healthz and /metrics as kube-proxy does, such as 127.0.0.1:10249; empty for none.")
	c := &config.Conntrack
	flags.IntVar(&c.MaxPerCore, "conntrack-max-per-core", c.MaxPerCore, "Connections that the kernel can track, for each core; 0 does not change the limit.")
	flags.IntVar(&c.Min, "conntrack-min", c.Min, "Connections that the kernel can track at least, whatever --conntrack-max-per-core.")
	flags.DurationVar(&c.TCPEstablishedTimeout, "conntrack-tcp-timeout-established", c.TCPEstablishedTimeout, "Time after which the kernel forgets an idle TCP connection; 0 does not change it.")
	flags.DurationVar(&c.TCPCloseWaitTimeout, "conntrack-tcp-timeout-close-wait", c.TCPCloseWaitTimeout, "Time after which the kernel forgets a TCP connection that only one side has closed; 0 does not change it.")
}

// agentClusterFlags are the flags for what an agent watches at the API server.
type agentClusterFlags struct{ daemonSet, kubeconfig, serverEndpoints string }

// add declares the flags.
func (f *agentClusterFlags) add(flags *pflag.FlagSet) {
	flags.StringVar(&f.daemonSet, "daemonset", "", "DaemonSet of the agents, as NAMESPACE/NAME: an agent that stops after the DaemonSet was deleted cleans up its node, as with --cleanup.")
	flags.StringVar(&f.kubeconfig, "kubeconfig", "", "Kubeconfig file of the API server, for --daemonset and --server-endpoints; by default $KUBECONFIG, ~/.kube/config or the pod's service account.")
	flags.StringVar(&f.serverEndpoints, "server-endpoints", "", "Service, as NAMESPACE/NAME, whose ready endpoints are the control plane's replicas, at port "+discovery.PortName+"; instead of --server.")
}

// configure sets what the agent watches at the API server, and a client if it watches anything.
func (f *agentClusterFlags) configure(config *node.Config) (err error) {
	if f.serverEndpoints != "" && len(config.Servers) > 0 {
		return usagef("--server and --server-endpoints: use one")
	}
	for _, flag := range []struct {
		name, value string
		to          *types.NamespacedName
	}{{"--daemonset", f.daemonSet, &config.DaemonSet}, {"--server-endpoints", f.serverEndpoints, &config.ServerEndpoints}} {
		if flag.value == "" {
			continue
		}
		if *flag.to, err = parseObject(flag.name, flag.value); err != nil {
			return err
		}
		if config.Client == nil {
			klog.SetSlogLogger(config.Log) // client-go's reflectors log there.
			if config.Client, err = source.NewClient(f.kubeconfig); err != nil {
				return err
			}
		}
	}
	return nil
}

// runAgent runs an agent that exports traces as the OTEL_ variables configure.
func runAgent(ctx context.Context, config node.Config) (err error) {
	var flush func(context.Context) error
	if config.Traces, flush, err = telemetry.Traces(ctx, "fairlead-agent"); err != nil {
		return err
	}
	if config.Meters, config.Metrics, err = telemetry.Metrics(build()); err != nil {
		return err
	}
	config.Version, _ = build()
	a, err := node.New(config)
	if err != nil {
		return err
	}
	err = a.Run(ctx)
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	return errors.Join(err, flush(last))
}

// parsePrefixes reads a flag's prefixes.
func parsePrefixes(flag string, values []string) ([]netip.Prefix, error) {
	var prefixes []netip.Prefix
	for _, v := range values {
		p, err := netip.ParsePrefix(v)
		if err != nil {
			return nil, fmt.Errorf("%s %q: use a prefix such as 10.244.0.0/16", flag, v)
		}
		prefixes = append(prefixes, p.Masked())
	}
	return prefixes, nil
}
