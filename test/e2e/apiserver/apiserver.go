// Package apiserver runs etcd and a Kubernetes API server on a host of a lab, for tests that want Kubernetes' own objects. In: a
// host, and the folder of the programs that ./build has built. Out: an address, kubeconfigs and a client that dials from the host.
package apiserver

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/fairlead/fairlead/server/lab"
)

// Ranges that Services get their addresses from, and the address that the first of them always has.
const (
	ServiceCIDRs      = "10.96.0.0/16,fd00:96::/112"
	KubernetesService = "10.96.0.1"
)

// Port is where the API server listens, on all addresses of its host.
const Port = 6443

// patience bounds every wait for a condition.
const patience = 30 * time.Second

// Config says what to run where.
type Config struct {
	Host     *lab.Host // One of its own.
	Programs string    // Folder of etcd and kube-apiserver.
	Dir      string    // Folder for certificates, keys, kubeconfigs and etcd's data, which is made.
	Logs     string    // Folder for etcd.log and kube-apiserver.log.
}

// Server is etcd and an API server. Its methods are called from one goroutine.
type Server struct {
	Token  string       // Of a member of system:masters.
	Config *rest.Config // For the tests, which are not on the host but dial from it. It has no limit of requests.
	Client *kubernetes.Clientset

	config          Config
	etcd, apiServer *lab.Process
}

// Start returns when the API server is ready. Also with an error it returns what runs, so that the caller can stop it.
func Start(ctx context.Context, c Config) (*Server, error) {
	s := &Server{Token: newToken(), config: c}
	if err := s.writeSecrets(); err != nil {
		return s, err
	}
	var err error
	s.etcd, err = s.run("etcd", "--data-dir", filepath.Join(c.Dir, "etcd"), "--log-level", "warn")
	if err != nil {
		return s, err
	}
	if err := s.StartAPIServer(); err != nil {
		return s, err
	}
	if err := s.connect(ctx); err != nil {
		return s, err
	}
	return s, s.Kubeconfig(s.AdminKubeconfig(), s.Address(), s.Token)
}

func (s *Server) run(program string, args ...string) (*lab.Process, error) {
	return s.config.Host.Run(program, filepath.Join(s.config.Logs, program+".log"), exec.Command(filepath.Join(s.config.Programs, program), args...))
}

// Address is where the API server listens, as host:port.
func (s *Server) Address() string { return netip.AddrPortFrom(s.config.Host.IPv4, Port).String() }

// CA returns the file of the certificates that the API server's is signed by.
func (s *Server) CA() string { return s.path("apiserver.crt") }

// AdminKubeconfig returns the file of an administrator's kubeconfig.
func (s *Server) AdminKubeconfig() string { return s.path("admin.kubeconfig") }

// ServiceAccountKey returns the file of the key that signs service accounts' tokens.
func (s *Server) ServiceAccountKey() string { return s.path("service-account.key") }

func (s *Server) path(name string) string { return filepath.Join(s.config.Dir, name) }

// StartAPIServer starts the API server again after it was killed.
func (s *Server) StartAPIServer() (err error) {
	s.apiServer, err = s.run("kube-apiserver",
		"--etcd-servers", "http://127.0.0.1:2379",
		"--bind-address", "0.0.0.0", "--secure-port", fmt.Sprint(Port), "--advertise-address", s.config.Host.IPv4.String(),
		"--cert-dir", s.config.Dir,
		"--service-cluster-ip-range", ServiceCIDRs,
		"--authorization-mode", "RBAC", "--token-auth-file", s.path("tokens.csv"),
		"--service-account-issuer", "https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file", s.ServiceAccountKey(),
		"--service-account-signing-key-file", s.ServiceAccountKey(),
		"--allow-privileged",                            // Whether Pods may ask for it, as on any cluster that kube-proxy runs on.
		"--disable-admission-plugins", "ServiceAccount") // Nobody mounts tokens into these pods.
	return err
}

// connect waits for the API server and makes the tests' client.
func (s *Server) connect(ctx context.Context) error {
	err := eventually(ctx, func(context.Context) error {
		if err := errors.Join(s.etcd.Ended(), s.apiServer.Ended()); err != nil {
			return err
		}
		_, err := os.Stat(s.CA()) // The API server writes it as it starts, its authority's certificate included.
		return err
	})
	if err != nil {
		return fmt.Errorf("kube-apiserver's certificate: %w", err)
	}
	s.Config = &rest.Config{
		Host:            s.Address(),
		BearerToken:     s.Token,
		TLSClientConfig: rest.TLSClientConfig{CAFile: s.CA()},
		Dial:            s.config.Host.DialContext,
		QPS:             -1,
	}
	if s.Client, err = kubernetes.NewForConfig(s.Config); err != nil {
		return err
	}
	return s.Ready(ctx)
}

// Ready waits until the API server says that it is ready, for half a minute at most.
func (s *Server) Ready(ctx context.Context) error {
	err := eventually(ctx, func(ctx context.Context) error {
		if err := s.apiServer.Ended(); err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		return s.Client.RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
	})
	if err != nil {
		return fmt.Errorf("kube-apiserver is not ready: %w", err)
	}
	return nil
}

// APIServer returns the API server's process.
func (s *Server) APIServer() *lab.Process { return s.apiServer }

// Stop ends what was started, last first.
func (s *Server) Stop() {
	for _, p := range []*lab.Process{s.apiServer, s.etcd} {
		if p != nil {
			p.Kill()
		}
	}
}

// Kubeconfig writes a kubeconfig of whoever has the token, for the API server at address, as host:port.
func (s *Server) Kubeconfig(path, address, token string) error {
	const name = "test"
	config := clientcmdapi.NewConfig()
	config.Clusters[name] = &clientcmdapi.Cluster{Server: "https://" + address, CertificateAuthority: s.CA()}
	config.AuthInfos[name] = &clientcmdapi.AuthInfo{Token: token}
	config.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: name}
	config.CurrentContext = name
	return clientcmd.WriteToFile(*config, path)
}

// writeSecrets writes the administrator's token and the key that signs service accounts' tokens.
func (s *Server) writeSecrets() error {
	if err := os.MkdirAll(s.config.Dir, 0o700); err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	pemKey := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})
	tokens := s.Token + ",admin,admin,system:masters\n"
	return errors.Join(
		os.WriteFile(s.ServiceAccountKey(), pemKey, 0o600),
		os.WriteFile(s.path("tokens.csv"), []byte(tokens), 0o600))
}

func newToken() string {
	b := make([]byte, 16)
	rand.Read(b) // Never fails: crypto/rand ends the program instead.
	return hex.EncodeToString(b)
}

// eventually asks a condition again and again until it holds, ctx ends, or patience does; then it says what is missing.
func eventually(ctx context.Context, condition func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	poll := time.NewTicker(20 * time.Millisecond)
	defer poll.Stop()
	for {
		err := condition(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("after %s: %w", patience, err)
		case <-poll.C:
		}
	}
}
