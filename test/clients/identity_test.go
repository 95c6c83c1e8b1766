package clients

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fairlead/fairlead/server/identity"
)

// What the languages' clients can do beside plaintext.
var (
	// tls: Node.js speaks to a control plane in plaintext only.
	tls = map[string]bool{"go": true, "python": true, "java": true}
	// tokens: the others cannot say who they are, and are served if a control plane lets in whoever sends no token.
	tokens = map[string]bool{"go": true, "python": true}
)

// TestIdentity: with the bootstrap that fairlead bootstrap grpc writes, programs trust a control plane by its CA and prove
// which pod they are by a token. Without the token they are refused, unless the control plane is told otherwise.
func TestIdentity(t *testing.T) {
	t.Setenv("GRPC_EXPERIMENTAL_XDS_BOOTSTRAP_CALL_CREDS", "true") // Go and C++ want to be told to heed gRFC A97.
	c := startCluster(t, false)
	strict, lax := c.serveSecurely(t, 18001), c.serveSecurely(t, 18002, "--grpc-anonymous")
	s := &service{cluster: c, t: t, name: "web", address: "10.96.0.10"}
	s.addPod(0)
	s.addPod(1)
	s.write()
	for _, language := range strings.Split(*languages, ",") {
		t.Run(language, func(t *testing.T) {
			if !tls[language] {
				t.Skip("speaks to the control plane in plaintext only")
			}
			if language == "java" {
				trustInJava(t, lax.ca)
			}
			ask := func(server secureServer, flags ...string) channel {
				flags = append(flags, "--server", server.address, "--ca-file", server.ca)
				return startProgram(t, c.client, language, c.bootstrap(t, language, flags...)).dial(t, "xds:///web.default:80")
			}
			ask(lax).callUntil("both backends answer", evenly(s.names()...))
			if !tokens[language] {
				return
			}
			ask(strict, "--token-file", strict.token).callUntil("both backends answer", evenly(s.names()...))
			if r := ask(strict).try(1); len(r.Answers) > 0 {
				t.Errorf("a program without a token got %v", r.Answers)
			} else {
				t.Logf("without a token: %v", r.Errors)
			}
		})
	}
}

// trustInJava has Java programs trust a CA: Java does not read the one that the bootstrap names.
func trustInJava(t *testing.T, ca string) {
	t.Helper()
	store := filepath.Join(t.TempDir(), "trust.p12")
	out, err := exec.Command("keytool", "-importcert", "-noprompt", "-file", ca, "-keystore", store, "-storepass", "changeit").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Setenv("JAVA_TOOL_OPTIONS", "-Djavax.net.ssl.trustStorePassword=changeit -Djavax.net.ssl.trustStore="+store)
}

// secureServer is a control plane with TLS and identity: its address, and the files that clients need.
type secureServer struct{ address, ca, token string }

// serveSecurely starts another control plane, with TLS, which asks a stand-in of the API server about tokens.
func (c *cluster) serveSecurely(t *testing.T, port uint16, flags ...string) secureServer {
	t.Helper()
	dir := t.TempDir()
	file := func(name string, content []byte) string {
		path := filepath.Join(dir, name)
		must(t, os.WriteFile(path, content, 0o600))
		return path
	}
	cert, key := selfSigned(t, net.IP(c.control.IPv4.AsSlice()))
	file("tls.crt", cert)
	file("tls.key", key)
	token := newToken(t)
	s := secureServer{address: c.address(port), ca: file("ca.crt", cert), token: file("token", []byte(token))}
	kubeconfig := file("kubeconfig", fmt.Appendf(nil, kubeconfigText, c.reviewTokens(t, token)))

	log := filepath.Join(dir, "serve.log")
	p, err := c.control.Run("fairlead serve", log, exec.Command(c.binary, append([]string{"serve", "--listen", s.address, "--admin", "127.0.0.1:0",
		"--source", "directory", "--directory", c.manifests(), "--tls-dir", dir, "--kubeconfig", kubeconfig}, flags...)...))
	must(t, err)
	t.Cleanup(func() {
		p.Stop()
		if t.Failed() {
			t.Logf("the control plane's log:\n%s", logOf(log))
		}
	})
	c.awaitServer(t, s.address)
	return s
}

const kubeconfigText = `apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "http://%s"}}]
contexts: [{name: c, context: {cluster: c}}]
current-context: c
`

// selfSigned returns a certificate for an address, which is its own CA, and the key.
func selfSigned(t *testing.T, address net.IP) (cert, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "control plane"}, IPAddresses: []net.IP{address},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	must(t, err)
	encoded, err := x509.MarshalPKCS8PrivateKey(private)
	must(t, err)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: encoded})
}

// newToken returns a token with the claims that are read before the API server is asked. What stands for its signature
// proves nothing; the API server knows the token.
func newToken(t *testing.T) string {
	t.Helper()
	claims, err := json.Marshal(map[string]any{"aud": identity.DefaultGRPCAudience, "exp": time.Now().Add(time.Hour).Unix()})
	must(t, err)
	part := base64.RawURLEncoding.EncodeToString
	return part([]byte(`{"alg":"RS256","typ":"JWT"}`)) + "." + part(claims) + "." + part([]byte("signature"))
}

// reviewTokens answers the control plane's TokenReviews in the place of an API server that knows one token, of a pod in
// the namespace default, and returns its address.
func (c *cluster) reviewTokens(t *testing.T, known string) net.Addr {
	t.Helper()
	listener, err := c.control.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	server := &http.Server{ReadHeaderTimeout: patience, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var review bytes.Buffer
		if _, err := review.ReadFrom(r.Body); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusCreated)
		fmt.Fprintf(w, `{"apiVersion":"authentication.k8s.io/v1","kind":"TokenReview","status":{"authenticated":%t,"audiences":[%q],`+
			`"user":{"username":"system:serviceaccount:default:default"}}}`,
			bytes.Contains(review.Bytes(), []byte(known)), identity.DefaultGRPCAudience)
	})}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	t.Cleanup(func() {
		must(t, server.Close())
		<-served // It ends by Close alone.
	})
	return listener.Addr()
}
