package main

import (
	"os/exec"

	"github.com/spf13/cobra"

	"github.com/fairlead/fairlead/server/agent"
	"github.com/fairlead/fairlead/server/agent/proxy"
)

func newProxyCommand() *cobra.Command {
	var (
		config proxy.Config
		runDir string
	)
	cmd := &cobra.Command{
		Use:   "proxy",
		Short: "Become the node's Envoy, in a network namespace of its own",
		Long: `Makes a network namespace, has the agent join it to the node, gives up every capability but CAP_NET_ADMIN
(which ends at that namespace) and becomes Envoy. Started a second time beside the first, it replaces it:
new connections go to the new Envoy, established ones stay with the old until it is stopped.`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			config.Socket = agent.ProxySocket(runDir)
			if path, err := exec.LookPath(config.Envoy); err == nil {
				config.Envoy = path
			}
			return proxy.Run(config)
		},
	}
	flags := cmd.Flags()
	flags.IntVar(&config.Concurrency, "concurrency", 0, "Envoy's worker threads; 0 is one for each core that it may use.")
	flags.StringVar(&config.Envoy, "envoy", "envoy", "Envoy binary, 1.40 or later.")
	flags.StringVar(&config.LogLevel, "log-level", "warning", "Envoy's log level.")
	flags.StringVar(&runDir, "run-dir", defaultRunDir, "Folder of the agent's unix sockets.")
	flags.IntVar(&config.User, "user", 0, "User and group that Envoy runs as; 0 changes nothing.")
	flags.DurationVar(&config.Wait, "wait", 0, "How long to wait for the agent; 0 waits for ever.")
	return cmd
}
