package realnode

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// pki is a cluster's keys, as kubeadm makes them, in files of one folder.
type pki struct {
	dir         string
	server      string // The API server's URL.
	key         *ecdsa.PrivateKey
	certificate *x509.Certificate
}

func (p *pki) path(name string) string { return filepath.Join(p.dir, name) }

// newPKI makes the authority, and the keys that service accounts' tokens are signed with.
func newPKI(dir, server string) (*pki, error) {
	p := &pki{dir: dir, server: server}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := certificate("kubernetes")
	template.IsCA, template.BasicConstraintsValid, template.KeyUsage = true, true, x509.KeyUsageCertSign|x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	p.key = key
	if p.certificate, err = x509.ParseCertificate(der); err != nil {
		return nil, err
	}
	signer, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	return p, errors.Join(
		p.write("ca", der, key),
		p.writeKey("service-account.key", signer))
}

// issue makes NAME.crt and NAME.key for a user of groups, and for a server at addresses and names.
func (p *pki) issue(name string, subject pkix.Name, hosts ...string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := certificate(subject.CommonName, subject.Organization...)
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
	for _, h := range hosts {
		if a, err := netip.ParseAddr(h); err == nil {
			template.IPAddresses = append(template.IPAddresses, net.IP(a.AsSlice()))
		} else {
			template.DNSNames = append(template.DNSNames, h)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, p.certificate, &key.PublicKey, p.key)
	if err != nil {
		return fmt.Errorf("certificate of %s: %w", name, err)
	}
	return p.write(name, der, key)
}

// user makes NAME.kubeconfig for a user of groups.
func (p *pki) user(name, commonName string, groups ...string) error {
	if err := p.issue(name, pkix.Name{CommonName: commonName, Organization: groups}); err != nil {
		return err
	}
	return p.kubeconfig(name)
}

// kubeconfig writes NAME.kubeconfig for the key of that name.
func (p *pki) kubeconfig(name string) error {
	const entry = "realnode"
	config := clientcmdapi.NewConfig()
	config.Clusters[entry] = &clientcmdapi.Cluster{Server: p.server, CertificateAuthority: p.path("ca.crt")}
	config.AuthInfos[entry] = &clientcmdapi.AuthInfo{ClientCertificate: p.path(name + ".crt"), ClientKey: p.path(name + ".key")}
	config.Contexts[entry] = &clientcmdapi.Context{Cluster: entry, AuthInfo: entry}
	config.CurrentContext = entry
	return clientcmd.WriteToFile(*config, p.path(name+".kubeconfig"))
}

func certificate(commonName string, groups ...string) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()),
		Subject:      pkix.Name{CommonName: commonName, Organization: groups},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(30 * 24 * time.Hour),
	}
}

func (p *pki) write(name string, der []byte, key *ecdsa.PrivateKey) error {
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return errors.Join(os.WriteFile(p.path(name+".crt"), text, 0o644), p.writeKey(name+".key", key))
}

func (p *pki) writeKey(file string, key *ecdsa.PrivateKey) error {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	return os.WriteFile(p.path(file), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), 0o600)
}
