package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/fairlead/fairlead/server/node"
	"github.com/fairlead/fairlead/server/node/envoyns"
	"github.com/fairlead/fairlead/translate/grpc"
)

func newBootstrapCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "bootstrap", Short: "Print the bootstrap configuration of an xDS client", Args: cobra.NoArgs}
	cmd.AddCommand(newBootstrapEnvoyCommand(), newBootstrapGRPCCommand())
	return cmd
}

func newBootstrapEnvoyCommand() *cobra.Command {
	var (
		name, runDir string
		id           int
	)
	cmd := &cobra.Command{
		Use:   "envoy --node NAME",
		Short: "Print the bootstrap that fairlead proxy starts Envoy with",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if name == "" {
				return usagef("--node: give the name of the node")
			}
			b, err := node.Bootstrap(name, runDir, envoyns.ID(id)).JSON()
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), string(b))
			return err
		},
	}
	flags := cmd.Flags()
	flags.IntVar(&id, "generation", 1, "Number of the Envoy instance on its node.")
	flags.StringVar(&name, "node", os.Getenv("NODE_NAME"), "Name of the node; by default $NODE_NAME.")
	flags.StringVar(&runDir, "run-dir", defaultRunDir, "Folder of the unix sockets.")
	return cmd
}

func newBootstrapGRPCCommand() *cobra.Command {
	var (
		bootstrap    grpc.Bootstrap
		file, format string
	)
	cmd := &cobra.Command{
		Use:   "grpc --server TARGET",
		Short: "Print the bootstrap of a gRPC program that dials xds:///SERVICE.NAMESPACE:PORT",
		Long: `Prints what a proxyless gRPC program reads from the file that $GRPC_XDS_BOOTSTRAP names, or with -o env
from $GRPC_XDS_BOOTSTRAP_CONFIG. In a pod, an init container runs it, with $NODE_NAME, $POD_NAME and $POD_NAMESPACE
from the downward API.`,
		Example: `  fairlead bootstrap grpc --server dns:///fairlead.fairlead-system:18000 --ca-file /ca.crt --file /bootstrap/grpc.json
  env "$(fairlead bootstrap grpc --server 127.0.0.1:18000 --insecure --id me -o env)" my-grpc-program`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			text, err := bootstrap.JSON()
			if err != nil {
				return err
			}
			switch format {
			case "json":
			case "env":
				text = append([]byte("GRPC_XDS_BOOTSTRAP_CONFIG="), text...)
			default:
				return usagef("--output %q: use json or env", format)
			}
			text = append(text, '\n')
			if file != "" {
				return os.WriteFile(file, text, 0o644)
			}
			_, err = cmd.OutOrStdout().Write(text)
			return err
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&bootstrap.CAFile, "ca-file", "", "File of the CA that the control plane's certificate is verified with, as the program sees it; by default the system's CAs.")
	flags.StringVar(&file, "file", "", "File to write, instead of standard output.")
	flags.StringVar(&bootstrap.ID, "id", podID(), "Name of the program, different from all others'; by default $POD_NAMESPACE/$POD_NAME.")
	flags.BoolVar(&bootstrap.Insecure, "insecure", false, "Connect to the control plane without TLS.")
	flags.StringVar(&bootstrap.Node, "node", os.Getenv("NODE_NAME"), "Name of the Node object of the node that the program runs on; by default $NODE_NAME.")
	flags.StringVarP(&format, "output", "o", "json", "Form of the output: json, or env for a variable and its value.")
	flags.StringSliceVar(&bootstrap.Servers, "server", nil, "The control plane, as a gRPC target; of several, a program uses a later one only while it can reach none of those before.")
	flags.StringVar(&bootstrap.TokenFile, "token-file", "", "File of the token by which the program authenticates itself, as the program sees it.")
	flags.StringVar(&bootstrap.Zone, "zone", "", "Zone of the program, where the control plane does not know the node.")
	return cmd
}

// podID returns NAMESPACE/POD of the pod that this process runs in; empty if the environment does not hold both.
func podID() string {
	if pod, namespace := os.Getenv("POD_NAME"), os.Getenv("POD_NAMESPACE"); pod != "" && namespace != "" {
		return namespace + "/" + pod
	}
	return ""
}
