package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/fairlead/fairlead/server/lab"
	"github.com/fairlead/fairlead/server/lab/demo"
	"github.com/fairlead/fairlead/server/lab/fleet"
)

func newDemoCommand() *cobra.Command {
	config := demo.Config{Out: os.Stdout}
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Show Fairlead at work on this machine, without a cluster",
		Long: `Builds two nodes with pods out of network namespaces, runs a control plane, agents and Envoys on them, sends
traffic and changes things under it. Needs no root where unprivileged user namespaces are allowed, the nft
command and Envoy. Touches nothing of this machine's network, and leaves nothing behind.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := demo.Check(); err != nil {
				return err
			}
			var err error
			if config.Envoy == "" {
				if config.Envoy, err = fleet.FindEnvoy("."); err != nil {
					return err
				}
			}
			if config.Fairlead, err = os.Executable(); err != nil {
				return err
			}
			code, err := lab.Isolated(func() int { return showDemo(cmd.Context(), config) })
			if err == nil && code != 0 {
				os.Exit(code) // The demo itself has printed the error.
			}
			return err
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&config.Envoy, "envoy", "", "Envoy binary, 1.40 or later; by default $ENVOY, the PATH's, or the one that make setup fetched.")
	flags.BoolVar(&config.Keep, "keep", false, "Leave everything running at the end, and print commands to try.")
	flags.StringVar(&config.Manifests, "manifests", "examples/quickstart", "Folder of the manifests that the demo is about.")
	return cmd
}

// exitInterrupted is the exit code that shells report for a program that Ctrl-C has ended.
const exitInterrupted = 130

// showDemo runs the demo and returns the exit code.
func showDemo(ctx context.Context, config demo.Config) int {
	switch err := demo.Run(ctx, config); {
	case errors.Is(err, context.Canceled):
		return exitInterrupted
	case err != nil:
		fmt.Fprintln(os.Stderr, "fairlead demo:", err)
		return 1
	}
	return 0
}
