package main

import (
	"context"
	"errors"
	"os/exec"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/fairlead/fairlead/server/node"
	"github.com/fairlead/fairlead/server/node/launcher"
)

func newProxyCommand() *cobra.Command {
	var (
		config launcher.Config
		runDir string
	)
	cmd := &cobra.Command{
		Use:   "proxy",
		Short: "Run the node's Envoy, in a network namespace of its own",
		Long: `Makes a network namespace, has the agent join it to the node, drops every capability but CAP_NET_ADMIN
(which applies to that namespace only) and executes Envoy. A second proxy beside the first replaces it once
its Envoy is ready: the kernel sends new connections to the new Envoy, and established ones stay with the old
until it is stopped.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			config.Socket = node.ProxySocket(runDir)
			if path, err := exec.LookPath(config.Envoy); err == nil {
				config.Envoy = path
			}
			return launcher.Run(cmd.Context(), config)
		},
	}
	cmd.AddCommand(newProxyDrainCommand(), newProxyReadyCommand(), newProxyAliveCommand())
	flags := cmd.Flags()
	flags.IntVar(&config.Concurrency, "concurrency", 0, "Number of Envoy's worker threads; 0 is one for each core that it may use.")
	flags.StringVar(&config.Envoy, "envoy", "envoy", "Envoy binary, 1.40 or later.")
	flags.StringVar(&config.LogLevel, "log-level", "warning", "Envoy's log level.")
	flags.StringVar(&runDir, "run-dir", defaultRunDir, "Folder of the agent's unix sockets.")
	flags.IntVar(&config.User, "user", 0, "User and group that Envoy runs as; 0 does not change them.")
	flags.DurationVar(&config.Wait, "wait", 0, "Time to wait for the agent; 0 waits for ever.")
	return cmd
}

func newProxyDrainCommand() *cobra.Command {
	var (
		process, user int
		timeout       time.Duration
	)
	cmd := &cobra.Command{
		Use:   "drain",
		Short: "Wait until Envoy has drained: no connections; a container's preStop hook",
		Long: `Waits until no client has a connection through Envoy, or for the given time at most.
A container's preStop hook runs it, since established connections stay with the Envoy that accepted them. A proxy that
still waits for its agent has nothing to drain.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			e, err := launcher.FindEnvoy(process, user)
			if errors.Is(err, launcher.ErrNotEnvoy) {
				return nil
			}
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			return e.Drain(ctx)
		},
	}
	addEnvoyFlags(cmd.Flags(), &process, &user)
	cmd.Flags().DurationVar(&timeout, "timeout", 5*time.Minute, "Time to wait; connections that are open then are cut when Envoy is stopped.")
	return cmd
}

func newProxyReadyCommand() *cobra.Command {
	var process, user int
	cmd := &cobra.Command{
		Use:   "ready",
		Short: "Check whether Envoy can accept connections; a container's readiness probe",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			e, err := launcher.FindEnvoy(process, user)
			if err != nil {
				return err
			}
			return e.Ready(cmd.Context())
		},
	}
	addEnvoyFlags(cmd.Flags(), &process, &user)
	return cmd
}

func newProxyAliveCommand() *cobra.Command {
	var process, user int
	cmd := &cobra.Command{
		Use:   "alive",
		Short: "Check whether Envoy answers at all, ready or not; a container's liveness probe",
		Long: `Fails if Envoy does not answer its admin interface within 5 s. A proxy that still waits for its agent is alive, and so is an
Envoy that has no resources yet.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			e, err := launcher.FindEnvoy(process, user)
			if errors.Is(err, launcher.ErrNotEnvoy) {
				return nil
			}
			if err != nil {
				return err
			}
			return e.Alive(cmd.Context())
		},
	}
	addEnvoyFlags(cmd.Flags(), &process, &user)
	return cmd
}

// addEnvoyFlags declares the flags that select an Envoy.
func addEnvoyFlags(flags *pflag.FlagSet, process, user *int) {
	flags.IntVar(process, "pid", 1, "Process ID of Envoy; 1 in its container.")
	flags.IntVar(user, "user", 0, "User that Envoy runs as: the same as --user of fairlead proxy.")
}
