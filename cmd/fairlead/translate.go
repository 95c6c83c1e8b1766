package main

import (
	"errors"
	"strings"

	"github.com/spf13/cobra"

	"github.com/fairlead/fairlead/server/ops/offline"
)

// filenameUsage describes the flag -f.
const filenameUsage = "File of YAML or JSON documents, folder of such files, quoted pattern of either, or - for standard input; may be repeated."

// failOns are the values of --fail-on.
var failOns = []string{"nothing", "problems"}

func newTranslateCommand() *cobra.Command {
	var (
		config offline.Config
		failOn string
	)
	cmd := &cobra.Command{
		Use:   "translate -f PATH... --node NAME",
		Short: "Print a node's forwarding table for manifests, without a cluster",
		Long: `Reads Services, EndpointSlices and Nodes, and prints the forwarding table of one node: every address that it
answers for, where connections from pods, from the node itself and from outside go, and what is wrong with the objects. Objects of
other kinds are counted on standard error.

Exit codes: 0 if the manifests were read, whatever the problems of single objects; 1 if nothing could be read; 2 if the command
line is wrong; 3 if there are problems and --fail-on problems is given, for a check in CI.`,
		Example: `  fairlead translate -f examples/quickstart --node n1
  kubectl get services,endpointslices,nodes -A -o yaml | fairlead translate -f - --node n1 -o json
  fairlead translate -f manifests --node n1 --fail-on problems`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			config.Stdin, config.Notes = cmd.InOrStdin(), cmd.ErrOrStderr()
			if err := errors.Join(choose("--fail-on", failOn, failOns), choose("--output", config.Format, offline.Formats)); err != nil {
				return err
			}
			if len(config.Paths) == 0 || config.Node == "" {
				return usagef("give manifests by -f PATH, and the node by --node NAME")
			}
			config.FailOnProblems = failOn == "problems"
			return offline.Run(config, cmd.OutOrStdout())
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&failOn, "fail-on", "nothing", "What makes the exit code 3: nothing or problems.")
	flags.StringArrayVarP(&config.Paths, "filename", "f", nil, filenameUsage)
	flags.StringVar(&config.Node, "node", "", "Name of the node.")
	flags.StringVarP(&config.Format, "output", "o", offline.Formats[0], "Form of the output: "+strings.Join(offline.Formats, ", ")+".")
	register(cmd, "fail-on", oneOf(failOns...))
	register(cmd, "output", oneOf(offline.Formats...))
	flags.StringVar(&config.ServiceProxyName, "service-proxy-name", "", "Read the Services whose label service.kubernetes.io/service-proxy-name has this value; by default those without the label.")
	return cmd
}
