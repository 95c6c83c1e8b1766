package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/fairlead/fairlead/server/agent"
	"github.com/fairlead/fairlead/server/agent/generation"
)

func newBootstrapCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "bootstrap", Short: "Print what an xDS client is started with", Args: cobra.NoArgs}
	cmd.AddCommand(newBootstrapEnvoyCommand())
	return cmd
}

func newBootstrapEnvoyCommand() *cobra.Command {
	var (
		node, runDir string
		id           int
	)
	cmd := &cobra.Command{
		Use:   "envoy --node NAME",
		Short: "Print the bootstrap that fairlead proxy starts Envoy with",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if node == "" {
				return fmt.Errorf("--node: give the name of the node")
			}
			b, err := agent.Bootstrap(node, runDir, generation.ID(id)).JSON()
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), string(b))
			return err
		},
	}
	flags := cmd.Flags()
	flags.IntVar(&id, "generation", 1, "Number of the Envoy on its node.")
	flags.StringVar(&node, "node", os.Getenv("NODE_NAME"), "Name of the node; by default $NODE_NAME.")
	flags.StringVar(&runDir, "run-dir", defaultRunDir, "Folder of the unix sockets.")
	return cmd
}
