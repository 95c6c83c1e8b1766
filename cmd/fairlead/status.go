package main

import (
	"context"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/fairlead/fairlead/server/ops/inspect"
	"github.com/fairlead/fairlead/server/ops/reach"
)

// statusFlags are the flags of fairlead status.
type statusFlags struct {
	cluster clusterFlags
	format  string
	service string
	timeout time.Duration
	watch   bool
}

func newStatusCommand() *cobra.Command {
	var f statusFlags
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show replicas, nodes and problems, or wait until every node forwards a Service's newest change",
		Long: `Shows the control plane's replicas, every node of the cluster, and which objects have problems. A node forwards, or is behind with
changes, rejects them, is not ready, or has no agent that is connected to any replica; then the reason stands below the table.
With --wait SERVICE it shows nothing, and ends when every node forwards the newest change of the Service: for rollouts.
` + clusterHelp + `
` + exitHelp,
		Example: `  fairlead status
  fairlead status --wait default/web --timeout 30s
  fairlead status -o json | jq '.nodes[] | select(.state != "Forwarding")'
  fairlead status --watch`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd) },
	}
	flags := cmd.Flags()
	f.cluster.add(flags)
	flags.StringVarP(&f.format, "output", "o", inspect.StatusFormats[0], "Form of the output: "+strings.Join(inspect.StatusFormats, ", ")+".")
	flags.DurationVar(&f.timeout, "timeout", time.Minute, "Maximum time to try or to wait; not with --watch.")
	flags.StringVar(&f.service, "wait", "", "Service, as NAME or NAMESPACE/NAME, whose newest change to wait for.")
	flags.BoolVarP(&f.watch, "watch", "w", false, "Show the state again each time that it has changed, until interrupted.")
	f.cluster.complete(cmd, map[string]func(context.Context, *reach.Cluster) ([]string, error){"wait": services})
	register(cmd, "output", oneOf(inspect.StatusFormats...))
	return cmd
}

func (f *statusFlags) run(cmd *cobra.Command) error {
	if err := choose("--output", f.format, inspect.StatusFormats); err != nil {
		return err
	}
	if f.watch && f.service != "" {
		return usagef("--watch and --wait: use one")
	}
	replicas, err := f.cluster.open()
	if err != nil {
		return err
	}
	defer replicas.Close()
	if f.watch {
		return inspect.Watch(cmd.Context(), replicas, f.format, cmd.OutOrStdout())
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), f.timeout)
	defer cancel()
	if f.service != "" {
		return inspect.Wait(ctx, replicas, qualified(f.service, replicas.Namespace()))
	}
	return inspect.Status(ctx, replicas, f.format, cmd.OutOrStdout())
}
