package main

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/fairlead/fairlead/server/ops/inspect"
)

func newExplainCommand() *cobra.Command {
	var q inspect.Question
	cmd := &cobra.Command{
		Use:   "explain SERVICE",
		Short: "Explain why each endpoint of a Service gets traffic or none, and what happens to connections",
		Long: `Asks a control plane, or manifests with -f, about a Service (namespace/name, or a name in the namespace default):
what connections to each of its addresses meet on each node, and for every endpoint whether it is used and, if not, why.
The answer comes from the code that decides.`,
		Example: `  fairlead explain default/web --node node-1 --from outside
  kubectl get services,endpointslices,nodes -A -o yaml | fairlead explain default/web -f -`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			q.Service, q.Manifests.Stdin, q.Manifests.Notes = args[0], cmd.InOrStdin(), cmd.ErrOrStderr()
			return inspect.AnswerQuestion(cmd.Context(), q, cmd.OutOrStdout())
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&q.Admin, "admin", defaultAdmin, "Admin address of the control plane to query; not used with -f.")
	flags.StringArrayVarP(&q.Manifests.Paths, "filename", "f", nil, filenameUsage)
	flags.StringVar(&q.From, "from", "", "Show only connections that originate at: pod, node or outside.")
	flags.StringArrayVar(&q.Nodes, "node", nil, "Name of a node; may be repeated. By default all.")
	flags.StringVarP(&q.Format, "output", "o", "text", "Form of the output: "+strings.Join(inspect.Formats, " or ")+".")
	flags.StringVar(&q.Manifests.ServiceProxyName, "service-proxy-name", "", "With -f: select Services by this label value, as fairlead translate does.")
	return cmd
}
