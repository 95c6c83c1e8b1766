package main

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/fairlead/fairlead/server/offline"
)

func newTranslateCommand() *cobra.Command {
	var config offline.Config
	cmd := &cobra.Command{
		Use:   "translate -f PATH... --node NAME",
		Short: "Print what a node does with manifests, without a cluster",
		Long: `Reads Services, EndpointSlices and Nodes, and prints the forwarding table of one node: every address that it
answers for, where connections from pods, from the node itself and from outside go, and what is wrong with the objects.`,
		Example: `  fairlead translate -f examples/quickstart --node n1
  kubectl get services,endpointslices,nodes -A -o yaml | fairlead translate -f - --node n1 -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			config.Stdin = cmd.InOrStdin()
			return offline.Run(config, cmd.OutOrStdout())
		},
	}
	flags := cmd.Flags()
	flags.StringArrayVarP(&config.Paths, "filename", "f", nil, "File of YAML or JSON documents, folder of such files, or - for standard input; may be repeated.")
	flags.StringVar(&config.Node, "node", "", "Name of the node.")
	flags.StringVarP(&config.Format, "output", "o", offline.Formats[0], "Form of the output: "+strings.Join(offline.Formats, ", ")+".")
	flags.StringVar(&config.ServiceProxyName, "service-proxy-name", "", "Which Services are ours: those whose label service.kubernetes.io/service-proxy-name has this value; by default those without the label.")
	return cmd
}
