package main

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	"github.com/fairlead/fairlead/server/ops/inspect"
	"github.com/fairlead/fairlead/server/ops/reach"
	"github.com/fairlead/fairlead/translate/model"
)

// origins are the values of --from.
var origins = []string{model.FromPod.String(), model.FromNode.String(), model.FromOutside.String()}

func newExplainCommand() *cobra.Command {
	var (
		q       inspect.Question
		cluster clusterFlags
	)
	cmd := &cobra.Command{
		Use:   "explain SERVICE",
		Short: "Explain why each endpoint of a Service gets traffic or none, and what happens to connections",
		Long: `Asks a control plane, or manifests with -f, about a Service (NAMESPACE/NAME, or a NAME in the namespace of -n or the context):
what connections to each of its addresses meet on each node, and for every endpoint whether it is used and, if not, why.
The answer comes from the code that decides.
` + clusterHelp + `
` + exitHelp,
		Example: `  fairlead explain default/web --node node-1 --from outside
  kubectl get services,endpointslices,nodes -A -o yaml | fairlead explain default/web -f -`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := choose("--output", q.Format, inspect.Formats); err != nil {
				return err
			}
			if q.From != "" {
				if err := choose("--from", q.From, origins); err != nil {
					return err
				}
			}
			q.Service, q.Manifests.Stdin, q.Manifests.Notes = args[0], cmd.InOrStdin(), cmd.ErrOrStderr()
			if len(q.Manifests.Paths) > 0 {
				q.Service = qualified(q.Service, fixed{namespace: cluster.cluster.Namespace}.Namespace())
				return inspect.AnswerQuestion(cmd.Context(), q, cmd.OutOrStdout())
			}
			replicas, err := cluster.open()
			if err != nil {
				return err
			}
			defer replicas.Close()
			q.Replicas, q.Service = replicas, qualified(q.Service, replicas.Namespace())
			return inspect.AnswerQuestion(cmd.Context(), q, cmd.OutOrStdout())
		},
	}
	flags := cmd.Flags()
	cluster.add(flags)
	flags.StringArrayVarP(&q.Manifests.Paths, "filename", "f", nil, filenameUsage)
	flags.StringVar(&q.From, "from", "", "Show only connections that originate at: "+strings.Join(origins, ", ")+".")
	flags.StringArrayVar(&q.Nodes, "node", nil, "Name of a node; may be repeated. By default all.")
	flags.StringVarP(&q.Format, "output", "o", inspect.Formats[0], "Form of the output: "+strings.Join(inspect.Formats, ", ")+".")
	flags.StringVar(&q.Manifests.ServiceProxyName, "service-proxy-name", "", "With -f: select Services by this label value, as fairlead translate does.")
	cluster.complete(cmd, map[string]func(context.Context, *reach.Cluster) ([]string, error){"node": nodes})
	register(cmd, "from", oneOf(origins...))
	register(cmd, "output", oneOf(inspect.Formats...))
	cmd.ValidArgsFunction = cluster.completion(services)
	return cmd
}
