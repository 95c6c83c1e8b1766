package identity

import (
	"context"
	"crypto/tls"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/credentials"
)

// Certificates are what a control plane authenticates with: at each moment one certificate, which is replaced while
// connections go on. Make them with FromFiles or FromAuthority, then call Run. They are safe for concurrent use.
type Certificates struct {
	// renew returns the certificate to use from now on, the same as before if nothing has changed. It may return one
	// along with an error. Only Run calls it.
	renew    func(context.Context) (*tls.Certificate, error)
	interval time.Duration // Between calls of renew.
	log      *slog.Logger
	current  atomic.Pointer[tls.Certificate]
	first    sync.Once
	ready    chan struct{} // Closed with the first certificate.
}

// Run renews the certificate until the context ends, which returns nil. What cannot be renewed is logged and tried
// again; meanwhile the last certificate stays in use.
func (c *Certificates) Run(ctx context.Context) error {
	failure := repeated{log: c.log}
	for ctx.Err() == nil {
		pair, err := c.renew(ctx)
		if ctx.Err() != nil {
			break
		}
		failure.report("certificates not renewed, the last ones stay in use", err)
		if pair != nil {
			c.use(pair)
		}
		if err != nil {
			pause(ctx, min(c.interval, retryInterval))
		} else {
			pause(ctx, c.interval)
		}
	}
	return nil
}

// retryInterval is how soon what failed is tried again, at the latest.
const retryInterval = 5 * time.Second

// use makes a certificate the current one.
func (c *Certificates) use(pair *tls.Certificate) {
	if c.current.Swap(pair) == pair {
		return
	}
	c.log.Info("new serving certificate", "names", pair.Leaf.DNSNames, "addresses", pair.Leaf.IPAddresses,
		"issuer", pair.Leaf.Issuer.String(), "expires", pair.Leaf.NotAfter)
	c.first.Do(func() { close(c.ready) })
}

// Ready returns a channel that is closed as soon as there is a certificate.
func (c *Certificates) Ready() <-chan struct{} { return c.ready }

// Expires returns when the current certificate expires; the zero time if there is none.
func (c *Certificates) Expires() time.Time {
	if pair := c.current.Load(); pair != nil {
		return pair.Leaf.NotAfter
	}
	return time.Time{}
}

// Credentials return the server's side of TLS. Each connection gets the certificate that is current when it begins;
// those that exist are left alone, since their client has already verified the earlier one.
func (c *Certificates) Credentials() credentials.TransportCredentials {
	return credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS13,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			if pair := c.current.Load(); pair != nil {
				return pair, nil
			}
			return nil, errNoCertificate
		},
	})
}
