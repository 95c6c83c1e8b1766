// Command fairlead is every part of Fairlead: the control plane, the node's agent, the start of its Envoy, and the tools
// that show what they do.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/fairlead/fairlead/server/ops/offline"
)

func main() { os.Exit(run()) }

// run carries out the command line and returns the exit code.
func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := newRootCommand().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "fairlead:", err)
		return exitCode(err)
	}
	return 0
}

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Version:       versionText(),
		Use:           "fairlead",
		Short:         "Kubernetes Services by Envoy, without kube-proxy and without sidecars.",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetVersionTemplate("fairlead {{.Version}}\n")
	root.AddCommand(
		newAgentCommand(),
		newBootstrapCommand(),
		newDemoCommand(),
		newExplainCommand(),
		newProxyCommand(),
		newServeCommand(),
		newStatusCommand(),
		newTranslateCommand(),
		newVersionCommand(),
	)
	return root
}

// exitCode tells an answer that asks for attention, 3, from none, 1.
func exitCode(err error) int {
	if errors.Is(err, offline.ErrProblems) {
		return 3
	}
	return 1
}
