package main

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"

	"github.com/fairlead/fairlead/server/ops/reach"
)

// clusterFlags say which control plane a command queries: as kubectl says which cluster, or by addresses.
type clusterFlags struct {
	admin   []string
	cluster reach.ClusterConfig
	service string
}

// clusterHelp tells in the commands' help how they reach the control plane.
const clusterHelp = `
The control plane's replicas are found by kubeconfig, as kubectl finds the cluster, and asked through the API server, each by a
port-forward of its own: that takes the right to list EndpointSlices, and to get pods and create pods/portforward, in Fairlead's
namespace. --admin asks at addresses instead, such as 127.0.0.1:19000.`

// add declares the flags.
func (f *clusterFlags) add(flags *pflag.FlagSet) {
	flags.StringSliceVar(&f.admin, "admin", nil, "Admin addresses of the control plane's replicas, instead of finding them in a cluster.")
	flags.StringVar(&f.cluster.Context, "context", "", "Context of the kubeconfig; by default the current one.")
	flags.StringVar(&f.cluster.Kubeconfig, "kubeconfig", "", "Kubeconfig file; by default $KUBECONFIG or ~/.kube/config.")
	flags.StringVarP(&f.cluster.Namespace, "namespace", "n", "", "Namespace of a Service that is named without one; by default the context's.")
	flags.StringVar(&f.service, "server-endpoints", "fairlead-system/fairlead", "Service, as NAMESPACE/NAME, whose endpoints are the control plane's replicas.")
}

// open returns the way to the replicas. The caller closes it.
func (f *clusterFlags) open() (reach.Replicas, error) {
	if len(f.admin) > 0 {
		return fixed{reach.Fixed(f.admin), f.cluster.Namespace}, nil
	}
	return f.openCluster()
}

// openCluster returns the cluster of the flags.
func (f *clusterFlags) openCluster() (*reach.Cluster, error) {
	service, err := parseObject("--server-endpoints", f.service)
	if err != nil {
		return nil, err
	}
	f.cluster.Service = service
	// client-go logs what the commands report themselves, such as a connection to a pod that was refused.
	klog.SetSlogLogger(slog.New(slog.DiscardHandler))
	return reach.NewCluster(f.cluster)
}

// fixed is addresses, with a namespace that was given.
type fixed struct {
	reach.Fixed
	namespace string
}

// Namespace implements reach.Replicas.
func (f fixed) Namespace() string {
	if f.namespace != "" {
		return f.namespace
	}
	return f.Fixed.Namespace()
}

// qualified returns NAMESPACE/NAME of a Service that may be named without its namespace.
func qualified(service, namespace string) string {
	if strings.Contains(service, "/") {
		return service
	}
	return namespace + "/" + service
}

// completionTimeout bounds what somebody waits for who presses Tab.
const completionTimeout = 3 * time.Second

// complete registers the completion of the flags, and of those of a command that name nodes or Services.
func (f *clusterFlags) complete(cmd *cobra.Command, names map[string]func(context.Context, *reach.Cluster) ([]string, error)) {
	register(cmd, "context", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		contexts, err := f.cluster.Contexts()
		return contexts, directive(err)
	})
	register(cmd, "namespace", f.completion(namespaces))
	for flag, list := range names {
		register(cmd, flag, f.completion(list))
	}
}

// register registers the completion of a flag. It panics for a flag that the command does not have.
func register(cmd *cobra.Command, flag string, values cobra.CompletionFunc) {
	if err := cmd.RegisterFlagCompletionFunc(flag, values); err != nil {
		panic(err)
	}
}

// completion returns the completion by names that the cluster has.
func (f *clusterFlags) completion(list func(context.Context, *reach.Cluster) ([]string, error)) cobra.CompletionFunc {
	return func(cmd *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
		c, err := f.openCluster()
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), completionTimeout)
		defer cancel()
		all, err := list(ctx, c)
		all = slices.DeleteFunc(all, func(name string) bool { return !strings.HasPrefix(name, typed) })
		return all, directive(err)
	}
}

// directive tells the shell that a completion has failed, or that files are no completion.
func directive(err error) cobra.ShellCompDirective {
	if err != nil {
		return cobra.ShellCompDirectiveError
	}
	return cobra.ShellCompDirectiveNoFileComp
}

// namespaces lists the namespaces.
func namespaces(ctx context.Context, c *reach.Cluster) ([]string, error) {
	list, err := c.Client().CoreV1().Namespaces().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	var names []string
	for _, o := range list.Items {
		names = append(names, o.Name)
	}
	return names, nil
}

// nodes lists the nodes.
func nodes(ctx context.Context, c *reach.Cluster) ([]string, error) {
	list, err := c.Client().CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	var names []string
	for _, o := range list.Items {
		names = append(names, o.Name)
	}
	return names, nil
}

// services lists the Services: those of the namespace by name, and all others by NAMESPACE/NAME.
func services(ctx context.Context, c *reach.Cluster) ([]string, error) {
	list, err := c.Client().CoreV1().Services("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	var names []string
	for _, o := range list.Items {
		if o.Namespace == c.Namespace() {
			names = append(names, o.Name)
		}
		names = append(names, o.Namespace+"/"+o.Name)
	}
	return names, nil
}

// oneOf is the completion of a flag that has one of few values.
func oneOf(all ...string) cobra.CompletionFunc {
	return cobra.FixedCompletions(all, cobra.ShellCompDirectiveNoFileComp)
}
