// Command fairlead is every part of Fairlead: the control plane, the node agent, the launcher of its Envoy, and the tools
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

// run executes the command line and returns the exit code.
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

// exitCode returns 3 for manifests with problems, where --fail-on asks for that, and 1 for every other error.
func exitCode(err error) int {
	if errors.Is(err, offline.ErrProblems) {
		return 3
	}
	return 1
}
