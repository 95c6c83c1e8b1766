package identity

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"
)

// The names of the files in a folder of certificates: the keys of a Secret of type kubernetes.io/tls, and the one that
// cert-manager adds.
const (
	certFile = "tls.crt"
	keyFile  = "tls.key"
	caFile   = "ca.crt"
)

// filesInterval is how often files are compared with what was read. Comparing their content works for every way in which
// files are replaced: the kubelet's symbolic links, a rename, writing in place, network file systems.
const filesInterval = time.Second

// FromFiles returns certificates from a folder with tls.crt and tls.key, such as a mounted Secret of cert-manager's.
// They are read again when they change. A pair that cannot be used, because it is half written, does not match, has
// expired or is not signed by the ca.crt beside it, is logged and leaves the last good one in use. The first one has to
// be good.
func FromFiles(dir string, log *slog.Logger) (*Certificates, error) {
	f := &files{dir: dir}
	c := &Certificates{renew: f.renew, interval: filesInterval, log: orDiscard(log), ready: make(chan struct{})}
	pair, err := f.renew(context.Background())
	if err != nil {
		return nil, err
	}
	c.use(pair)
	return c, nil
}

// files are the files of a folder as they were last read.
type files struct {
	dir  string
	read content
	pair *tls.Certificate // The last good one.
	err  error            // Why the files last read cannot be used.
}

// content is what the files hold; ca is empty if there is none.
type content struct{ cert, key, ca []byte }

func (c content) equal(o content) bool {
	return bytes.Equal(c.cert, o.cert) && bytes.Equal(c.key, o.key) && bytes.Equal(c.ca, o.ca)
}

// renew returns the last good pair.
func (f *files) renew(context.Context) (*tls.Certificate, error) {
	now, err := f.content()
	if err != nil {
		return f.pair, fmt.Errorf("read certificates: %w", err)
	}
	if f.pair != nil && now.equal(f.read) {
		return f.pair, f.err
	}
	f.read = now
	pair, err := now.pair()
	if err != nil {
		f.err = fmt.Errorf("certificates in %s: %w", f.dir, err)
		return f.pair, f.err
	}
	f.pair, f.err = pair, nil
	return pair, nil
}

// content reads the files until it reads the same twice: they may be replaced, all at once, between one and the next.
func (f *files) content() (content, error) {
	const attempts = 5
	last, err := f.readOnce()
	for range attempts {
		if err != nil {
			return content{}, err
		}
		before := last
		if last, err = f.readOnce(); err == nil && last.equal(before) {
			return last, nil
		}
	}
	return content{}, errors.Join(err, fmt.Errorf("%s changes faster than it can be read", f.dir))
}

func (f *files) readOnce() (c content, err error) {
	if c.cert, err = os.ReadFile(filepath.Join(f.dir, certFile)); err != nil {
		return content{}, err
	}
	if c.key, err = os.ReadFile(filepath.Join(f.dir, keyFile)); err != nil {
		return content{}, err
	}
	if c.ca, err = os.ReadFile(filepath.Join(f.dir, caFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return content{}, err
	}
	return c, nil
}

// pair returns the certificate, if a client could accept it now.
func (c content) pair() (*tls.Certificate, error) {
	pair, err := tls.X509KeyPair(c.cert, c.key)
	if err != nil {
		return nil, fmt.Errorf("%s and %s: %w", certFile, keyFile, err)
	}
	if pair.Leaf.NotAfter.Before(time.Now()) {
		return nil, fmt.Errorf("%s expired at %s", certFile, pair.Leaf.NotAfter)
	}
	// An issuer that everybody trusts leaves ca.crt empty.
	if len(bytes.TrimSpace(c.ca)) == 0 {
		return &pair, nil
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(c.ca) {
		return nil, fmt.Errorf("%s holds no certificate", caFile)
	}
	between := x509.NewCertPool()
	for _, der := range pair.Certificate[1:] {
		if cert, err := x509.ParseCertificate(der); err == nil {
			between.AddCert(cert)
		}
	}
	if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between}); err != nil {
		return nil, fmt.Errorf("%s is of no use to who trusts %s: %w", certFile, caFile, err)
	}
	return &pair, nil
}
