// Command fairlead is every part of Fairlead: the control plane, the node agent, the launcher of its Envoy, and the tools
// that show what they do.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"
)

func main() { os.Exit(run()) }

// run executes the command line and returns the exit code.
func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := newRootCommand()
	asPlugin(root, filepath.Base(os.Args[0]), os.Args[1:])
	if err := root.ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "fairlead:", err)
		return exitCode(err)
	}
	return 0
}

// asPlugin has the program speak as a plugin of kubectl if it is called by one of the names that kubectl finds those by:
// kubectl-NAME, and kubectl_complete-NAME, which is asked for completions.
func asPlugin(root *cobra.Command, name string, args []string) {
	switch name {
	case "kubectl_complete-fairlead":
		root.SetArgs(append([]string{cobra.ShellCompRequestCmd}, args...))
	case "kubectl-fairlead":
		root.Annotations = map[string]string{cobra.CommandDisplayNameAnnotation: "kubectl fairlead"}
	}
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
		newCheckCommand(),
		newDemoCommand(),
		newExplainCommand(),
		newProxyCommand(),
		newServeCommand(),
		newStatusCommand(),
		newTranslateCommand(),
		newVersionCommand(),
	)
	checkUsage(root)
	return root
}
