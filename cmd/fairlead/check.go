package main

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/fairlead/fairlead/server/node/hostcheck"
	"github.com/fairlead/fairlead/server/ops/inspect"
)

// checkFormats are the forms of the output of fairlead check node. The first is the default.
var checkFormats = []string{"table", "json", "yaml"}

func newCheckCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "check", Short: "Look for what stands in the way of Services' packets"}
	cmd.AddCommand(newCheckNodeCommand())
	return cmd
}

func newCheckNodeCommand() *cobra.Command {
	config := hostcheck.DefaultConfig()
	var format string
	cmd := &cobra.Command{
		Use:   "node",
		Short: "Look at this node: kernel, other programs' rules, links and settings",
		Long: `Looks at the node that it runs on, as root in the host's network namespace, for what the kernel lacks and for what other programs
have set up that stands in the way of Services' packets. It changes nothing, and needs neither agent nor control plane. The agent
looks for the same all the time: the problems, not the notes, stand in fairlead status and in Events of the Node.
` + exitHelp,
		Example: `  fairlead check node
  kubectl -n fairlead-system exec POD-OF-THE-AGENT -- fairlead check node --root=
  kubectl debug node/NAME -it --profile=sysadmin --image=IMAGE -- fairlead check node --root /host`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := choose("--output", format, checkFormats); err != nil {
				return err
			}
			results, err := hostcheck.Run(cmd.Context(), config)
			if err != nil {
				return err
			}
			write := func() error { return inspect.Encode(cmd.OutOrStdout(), format, results) }
			if format == "table" {
				write = func() error { return hostcheck.Print(cmd.OutOrStdout(), results) }
			}
			if err := write(); err != nil {
				return err
			}
			return hostcheck.Err(results)
		},
	}
	flags := cmd.Flags()
	flags.StringVarP(&format, "output", "o", checkFormats[0], "Form of the output: "+strings.Join(checkFormats, ", ")+".")
	flags.StringVar(&config.Root, "root", config.Root, "Folder below which the node's files are, such as /host in a debugging container; empty if they are not visible.")
	register(cmd, "output", oneOf(checkFormats...))
	return cmd
}
