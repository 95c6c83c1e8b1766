package main

import (
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/spf13/pflag"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/fairlead/fairlead/server/controlplane"
	"github.com/fairlead/fairlead/server/identity"
)

// serverIdentityFlags configure how a control plane authenticates itself, and which clients it accepts.
type serverIdentityFlags struct {
	insecure              bool
	tlsDir                string
	caSecret, caConfigMap string
	names                 []string

	agentAudience, agentAccount string
	grpcAudience                string
	grpcNamespaces              []string
	grpcAnonymous               bool
}

// add declares the flags.
func (f *serverIdentityFlags) add(flags *pflag.FlagSet) {
	namespace := os.Getenv("POD_NAMESPACE")
	if namespace == "" {
		namespace = "fairlead-system"
	}
	flags.StringVar(&f.agentAudience, "agent-audience", identity.DefaultAgentAudience, "Audience of the tokens of agents.")
	flags.StringVar(&f.agentAccount, "agent-service-account", namespace+"/fairlead-agent", "Service account of agents, as NAMESPACE/NAME; the namespace is $POD_NAMESPACE by default.")
	flags.StringVar(&f.caConfigMap, "ca-config-map", namespace+"/fairlead-ca", "ConfigMap, as NAMESPACE/NAME, whose key ca.crt holds the CAs that clients trust.")
	flags.StringVar(&f.caSecret, "ca-secret", namespace+"/fairlead-ca", "Secret, as NAMESPACE/NAME, in which the replicas keep the CA of their certificates; created if it is missing.")
	flags.BoolVar(&f.grpcAnonymous, "grpc-anonymous", false, "Serve gRPC programs that send no token: gRPC cannot send one in every language.")
	flags.StringVar(&f.grpcAudience, "grpc-audience", identity.DefaultGRPCAudience, "Audience of the tokens of gRPC programs; empty for none.")
	flags.StringSliceVar(&f.grpcNamespaces, "grpc-namespaces", nil, "Namespaces whose gRPC programs are served; by default all.")
	flags.BoolVar(&f.insecure, "insecure", false, "Serve xDS without TLS and client authentication on an address that is not loopback.")
	flags.StringVar(&f.tlsDir, "tls-dir", "", "Folder with tls.crt and tls.key, such as cert-manager's, instead of certificates from the CA in --ca-secret.")
	flags.StringSliceVar(&f.names, "tls-names", nil, "DNS names and addresses, besides "+identity.DefaultServerName+", that the certificate from --ca-secret is made out to.")
}

// secure reports whether the control plane serves xDS on the address with TLS: always, except on loopback and with --insecure.
func (f *serverIdentityFlags) secure(listen string, log *slog.Logger) (bool, error) {
	addr, err := netip.ParseAddrPort(listen)
	switch {
	case err != nil:
		return false, usagef("--listen %q: use an address and a port, such as 127.0.0.1:18000 or [::]:18000", listen)
	case f.insecure && f.tlsDir != "":
		return false, usagef("--tls-dir and --insecure: use one")
	case f.insecure:
		log.Warn("serving xDS without TLS and client authentication: anybody who reaches the address can read it", "address", listen)
		return false, nil
	}
	return f.tlsDir != "" || !addr.Addr().Unmap().IsLoopback(), nil
}

// configure sets a control plane's certificates and the authenticator of its clients.
func (f *serverIdentityFlags) configure(config *controlplane.Config, client kubernetes.Interface) error {
	var names [3]types.NamespacedName
	for i, flag := range []struct{ name, value string }{
		{"--agent-service-account", f.agentAccount}, {"--ca-secret", f.caSecret}, {"--ca-config-map", f.caConfigMap},
	} {
		var err error
		if names[i], err = parseObject(flag.name, flag.value); err != nil {
			return err
		}
	}
	var err error
	config.Identity, err = identity.NewAuthenticator(identity.AuthenticatorConfig{
		Client: client, Log: config.Log, AgentAudience: f.agentAudience, AgentAccount: names[0],
		GRPCAudience: f.grpcAudience, GRPCNamespaces: f.grpcNamespaces, GRPCAnonymous: f.grpcAnonymous,
	})
	if err != nil {
		return err
	}
	if f.tlsDir != "" {
		config.Certificates, err = identity.FromFiles(f.tlsDir, config.Log)
		return err
	}
	config.Certificates = identity.FromAuthority(identity.AuthorityConfig{
		Client: client, Secret: names[1], Bundle: names[2], Names: f.names, Log: config.Log,
	})
	return nil
}

// parseObject reads a flag that names an object.
func parseObject(flag, value string) (types.NamespacedName, error) {
	namespace, name, ok := strings.Cut(value, "/")
	if !ok || namespace == "" || name == "" {
		return types.NamespacedName{}, usagef("%s %q: use NAMESPACE/NAME", flag, value)
	}
	return types.NamespacedName{Namespace: namespace, Name: name}, nil
}

// clientIdentityFlags configure which CA an agent trusts, and how it authenticates itself.
type clientIdentityFlags struct {
	flags    *pflag.FlagSet
	insecure bool
	config   identity.ClientConfig
}

// The files in an agent's pod by which the agent authenticates the control plane and itself.
const (
	defaultCAFile    = "/etc/fairlead/ca/ca.crt"
	defaultTokenFile = "/var/run/secrets/fairlead/token"
)

// add declares the flags.
func (f *clientIdentityFlags) add(flags *pflag.FlagSet) {
	f.flags = flags
	flags.StringVar(&f.config.CAFile, "ca-file", defaultCAFile, "File of the CA that the control plane's certificate is signed by; read for each connection.")
	flags.BoolVar(&f.insecure, "insecure", false, "Talk to the control plane without TLS and identity, on an address that is not loopback.")
	flags.StringVar(&f.config.ServerName, "server-name", identity.DefaultServerName, "Name in the control plane's certificate, whatever its address.")
	flags.StringVar(&f.config.TokenFile, "token-file", defaultTokenFile, "File of the service-account token by which the agent proves its node; read for each connection.")
}

// dialOptions returns what secures connections to the servers. Servers on loopback have no TLS, as fairlead serve has none
// there, unless one of the flags is set.
func (f *clientIdentityFlags) dialOptions(servers []string) ([]grpc.DialOption, error) {
	asked := f.flags.Changed("ca-file") || f.flags.Changed("server-name") || f.flags.Changed("token-file")
	if f.insecure || !asked && allLoopback(servers) {
		return []grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())}, nil
	}
	return f.config.DialOptions()
}

// allLoopback reports whether there are servers, all on loopback.
func allLoopback(servers []string) bool {
	for _, s := range servers {
		host, _, _ := net.SplitHostPort(s) // Of what is no host:port the host is empty, which is no address.
		addr, err := netip.ParseAddr(host)
		if err != nil || !addr.Unmap().IsLoopback() {
			return false
		}
	}
	return len(servers) > 0
}
