package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/fairlead/fairlead/server/ops/inspect"
)

// defaultAdmin is a control plane's admin address on its own machine, or after kubectl port-forward.
const defaultAdmin = "127.0.0.1:19000"

func newStatusCommand() *cobra.Command {
	var (
		addresses []string
		all       bool
		service   string
		timeout   time.Duration
	)
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show replicas, nodes and problems, or wait until every node forwards a Service's newest change",
		Long: `Shows what the control plane knows: its replicas, each node's version and lag, what nodes reject and which objects
have problems. The exit code is 0 if all is well.

With --wait SERVICE it shows nothing, and ends when every node forwards the newest change of the Service: for rollouts.`,
		Example: `  kubectl -n fairlead port-forward deployment/fairlead 19000 &
  fairlead status
  fairlead status --wait default/web --timeout 30s`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			if service != "" {
				return inspect.Wait(ctx, addresses, service, all)
			}
			return inspect.Status(ctx, addresses, cmd.OutOrStdout())
		},
	}
	flags := cmd.Flags()
	flags.StringSliceVar(&addresses, "admin", []string{defaultAdmin}, "Admin addresses of the control plane's replicas.")
	flags.BoolVar(&all, "all-nodes", false, "With --wait: wait for nodes without an agent, too.")
	flags.DurationVar(&timeout, "timeout", time.Minute, "Maximum time to try or to wait.")
	flags.StringVar(&service, "wait", "", "Service, as namespace/name, whose newest change to wait for.")
	return cmd
}
