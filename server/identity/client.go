package identity

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
)

// ClientConfig says which CA a client trusts and how it authenticates itself. Both files are read for every
// connection or stream, so that their replacements are used from the next one on.
type ClientConfig struct {
	CAFile     string // CA certificates in PEM, such as the mounted ConfigMap that FromAuthority writes.
	ServerName string // What the server's certificate must be made out to, whatever address was dialled.
	TokenFile  string // A service-account token, such as a projected serviceAccountToken volume.
}

// DialOptions returns the transport credentials and the token as gRPC wants them. The token is only ever sent over TLS.
// The error is about what is missing in the configuration; files may still appear later.
func (c ClientConfig) DialOptions() ([]grpc.DialOption, error) {
	for _, f := range []struct{ value, what string }{
		{c.CAFile, "file of the CA that the control plane's certificate is signed by"},
		{c.ServerName, "name in the control plane's certificate"},
		{c.TokenFile, "file of the service-account token"},
	} {
		if f.value == "" {
			return nil, errors.New("identity: no " + f.what)
		}
	}
	return []grpc.DialOption{
		grpc.WithTransportCredentials(c.transport()),
		grpc.WithPerRPCCredentials(bearer{c.TokenFile}),
	}, nil
}

func (c ClientConfig) transport() credentials.TransportCredentials {
	return clientTLS{credentials.NewTLS(&tls.Config{ServerName: c.ServerName, MinVersion: tls.VersionTLS13}), c}
}

// clientTLS is TLS with roots that may change. Only the client's side is meant.
type clientTLS struct {
	credentials.TransportCredentials
	cfg ClientConfig
}

// ClientHandshake is that of TLS, with the roots that the file holds now.
func (c clientTLS) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	pem, err := os.ReadFile(c.cfg.CAFile)
	if err != nil {
		return nil, nil, fmt.Errorf("read what CA to trust: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, nil, fmt.Errorf("%s holds no certificate: it must be the CA of the control plane, in PEM", c.cfg.CAFile)
	}
	config := &tls.Config{RootCAs: roots, ServerName: c.cfg.ServerName, MinVersion: tls.VersionTLS13}
	return credentials.NewTLS(config).ClientHandshake(ctx, authority, raw)
}

// Clone returns a copy.
func (c clientTLS) Clone() credentials.TransportCredentials {
	return clientTLS{c.TransportCredentials.Clone(), c.cfg}
}

// bearer sends the token in a file.
type bearer struct{ file string }

// GetRequestMetadata reads the file: the kubelet replaces it well before the token in it expires.
func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	content, err := os.ReadFile(b.file)
	if err != nil {
		return nil, status.Errorf(codes.Unauthenticated, "read token: %v", err)
	}
	token := strings.TrimSpace(string(content))
	if token == "" {
		return nil, status.Errorf(codes.Unauthenticated, "token file %s is empty", b.file)
	}
	return map[string]string{authorizationHeader: bearerPrefix + token}, nil
}

// RequireTransportSecurity makes gRPC refuse to send the token in the clear.
func (b bearer) RequireTransportSecurity() bool { return true }
