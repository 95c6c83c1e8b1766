package identity

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"slices"
	"time"
)

// The life of a CA. Half a year before the end its successor is made and published beside it. It signs nothing for a month:
// clients that trust the published bundle have that long to load the new one, also where it is copied by hand.
const (
	caLife    = 2 * 365 * 24 * time.Hour
	caRenewal = 182 * 24 * time.Hour // Before the end.
	caOverlap = 30 * 24 * time.Hour  // From publishing to signing.

	servingLife = 24 * time.Hour // Of a certificate that a replica issues to itself; renewed at half of it.
)

// The keys of the Secret. Those of the CA that signs are the ones of a Secret of type kubernetes.io/tls, so that a CA
// of somebody's own can be put there.
const (
	nextCertFile = "next.crt"
	nextKeyFile  = "next.key"
)

// signer is a certificate authority.
type signer struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// trust is what the replicas of a control plane share. Values are immutable.
type trust struct {
	signer *signer             // Signs.
	next   *signer             // Will sign, once clients have loaded the bundle with it; nil if the signer is far from its end.
	bundle []*x509.Certificate // Every CA whose signature may be met; includes the two.
}

// parseTrust reads a Secret's data. Without a key that begins with tls there is no trust yet.
func parseTrust(data map[string][]byte) (t trust, err error) {
	if len(data[certFile]) == 0 && len(data[keyFile]) == 0 {
		return trust{}, nil
	}
	if t.signer, err = parseSigner(data[certFile], data[keyFile]); err != nil {
		return trust{}, fmt.Errorf("%s and %s: %w", certFile, keyFile, err)
	}
	if len(data[nextCertFile]) > 0 {
		if t.next, err = parseSigner(data[nextCertFile], data[nextKeyFile]); err != nil {
			return trust{}, fmt.Errorf("%s and %s: %w", nextCertFile, nextKeyFile, err)
		}
	}
	for rest := data[caFile]; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return trust{}, fmt.Errorf("%s: %w", caFile, err)
		}
		t.bundle = append(t.bundle, cert)
	}
	return t, nil
}

func parseSigner(certPEM, keyPEM []byte) (*signer, error) {
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, err
	}
	key, ok := pair.PrivateKey.(crypto.Signer)
	if !ok || !pair.Leaf.IsCA {
		return nil, errors.New("not the certificate and key of a CA")
	}
	return &signer{pair.Leaf, key}, nil
}

// data returns what parseTrust reads.
func (t trust) data() (map[string][]byte, error) {
	data := map[string][]byte{caFile: t.bundlePEM(), certFile: encodeCert(t.signer.cert)}
	var err error
	if data[keyFile], err = encodeKey(t.signer.key); err != nil {
		return nil, err
	}
	if t.next != nil {
		data[nextCertFile] = encodeCert(t.next.cert)
		if data[nextKeyFile], err = encodeKey(t.next.key); err != nil {
			return nil, err
		}
	}
	return data, nil
}

// bundlePEM returns what clients have to trust.
func (t trust) bundlePEM() []byte {
	var all []byte
	for _, cert := range t.bundle {
		all = append(all, encodeCert(cert)...)
	}
	return all
}

func encodeCert(cert *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})
}

func encodeKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// advance returns what the replicas should share now, and its changes in words; none if nothing changed.
func (t trust) advance(now time.Time) (trust, []string, error) {
	var changes []string
	switch {
	case t.signer == nil, !now.Before(t.signer.cert.NotAfter) && t.next == nil:
		made, err := newSigner(now)
		if err != nil {
			return trust{}, nil, err
		}
		t.signer = made
		changes = append(changes, "a new CA signs")
	case t.next != nil && (!now.Before(t.next.created().Add(caOverlap)) || !now.Before(t.signer.cert.NotAfter)):
		t.signer, t.next = t.next, nil
		changes = append(changes, "the next CA signs")
	case t.next == nil && !now.Before(t.signer.cert.NotAfter.Add(-caRenewal)):
		made, err := newSigner(now)
		if err != nil {
			return trust{}, nil, err
		}
		t.next = made
		changes = append(changes, "the next CA is published, to sign later")
	}
	bundle := t.currentBundle(now)
	if !slices.EqualFunc(bundle, t.bundle, (*x509.Certificate).Equal) && len(changes) == 0 {
		changes = append(changes, "expired CAs are no longer trusted")
	}
	t.bundle = bundle
	return t, changes, nil
}

// currentBundle returns the bundle without what has expired, and with the signers.
func (t trust) currentBundle(now time.Time) []*x509.Certificate {
	var bundle []*x509.Certificate
	add := func(cert *x509.Certificate) {
		if now.Before(cert.NotAfter) && !slices.ContainsFunc(bundle, cert.Equal) {
			bundle = append(bundle, cert)
		}
	}
	for _, cert := range t.bundle {
		add(cert)
	}
	add(t.signer.cert)
	if t.next != nil {
		add(t.next.cert)
	}
	return bundle
}

func (s *signer) created() time.Time { return s.cert.NotBefore.Add(backdate) }

// newKey returns a private key and a serial number for its certificate.
func newKey() (*ecdsa.PrivateKey, *big.Int, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	serial, err := newSerial()
	return key, serial, err
}

// newSigner makes a CA. Each has a name of its own, so that a client that knows several tries the right one.
func newSigner(now time.Time) (*signer, error) {
	key, serial, err := newKey()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: fmt.Sprintf("Fairlead CA %.8x", serial.Bytes())},
		NotBefore:    now.Add(-backdate),
		NotAfter:     now.Add(caLife),

		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign,
	}
	cert, err := certify(template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	return &signer{cert, key}, nil
}

// issue makes a serving certificate for the names, which are DNS names and addresses. It ends with its CA.
func (s *signer) issue(names []string, now time.Time) (*tls.Certificate, error) {
	key, serial, err := newKey()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: DefaultServerName},
		NotBefore:    now.Add(-backdate),
		NotAfter:     now.Add(servingLife),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if s.cert.NotAfter.Before(template.NotAfter) {
		template.NotAfter = s.cert.NotAfter
	}
	for _, name := range names {
		if addr, err := netip.ParseAddr(name); err == nil {
			template.IPAddresses = append(template.IPAddresses, net.IP(addr.Unmap().AsSlice()))
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	cert, err := certify(template, s.cert, key.Public(), s.key)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{cert.Raw, s.cert.Raw}, PrivateKey: key, Leaf: cert}, nil
}

// issued reports whether the CA signed a certificate.
func (s *signer) issued(cert *x509.Certificate) bool {
	return bytes.Equal(cert.AuthorityKeyId, s.cert.SubjectKeyId) && cert.CheckSignatureFrom(s.cert) == nil
}

func certify(template, parent *x509.Certificate, public crypto.PublicKey, key crypto.Signer) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// newSerial returns a random number, which no other certificate has.
func newSerial() (*big.Int, error) {
	return rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
}
