package identity

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
)

// authorityInterval is how often a replica reads what the others wrote. A certificate of the last CA stays valid for
// long, so more often is not needed.
const authorityInterval = time.Minute

// AuthorityConfig says where the replicas of a control plane keep the CA that they share.
type AuthorityConfig struct {
	Client kubernetes.Interface
	// Secret holds the CA. It is made if it is missing, and filled if it is empty. A CA of somebody's own may be put there, as
	// tls.crt and tls.key; it is replaced before it expires.
	Secret types.NamespacedName
	// Bundle is the ConfigMap whose key ca.crt holds the CAs that clients trust. It is made if it is missing.
	Bundle types.NamespacedName
	// Names are the DNS names and addresses, besides DefaultServerName, that this replica's certificate is made out to.
	Names []string
	Log   *slog.Logger // Nil discards.

	now func() time.Time // Nil means time.Now.
}

// FromAuthority returns certificates that this process issues to itself, in memory, from a CA that it shares with the
// other replicas through a Secret. The first replica makes the CA, and replaces it long before it expires;
// between the two, the bundle of clients holds both.
func FromAuthority(cfg AuthorityConfig) *Certificates {
	cfg.Log = orDiscard(cfg.Log)
	if cfg.now == nil {
		cfg.now = time.Now
	}
	a := &authority{cfg: cfg, names: []string{DefaultServerName}}
	for _, name := range cfg.Names {
		if !slices.Contains(a.names, name) {
			a.names = append(a.names, name)
		}
	}
	return &Certificates{renew: a.renew, interval: authorityInterval, log: cfg.Log, ready: make(chan struct{})}
}

// authority belongs to the goroutine of Certificates.Run.
type authority struct {
	cfg   AuthorityConfig
	names []string
	trust trust            // As last read.
	pair  *tls.Certificate // As last issued.
}

// renew returns the certificate to serve with. While the API server does not answer, that is still renewed, from the CA
// that was read last.
func (a *authority) renew(ctx context.Context) (*tls.Certificate, error) {
	trust, err := a.agree(ctx)
	if err != nil {
		err = fmt.Errorf("secret %s: %w", a.cfg.Secret, err)
	} else {
		a.trust = trust
		if err = a.publish(ctx); err != nil {
			err = fmt.Errorf("config map %s: %w", a.cfg.Bundle, err)
		}
	}
	if a.trust.signer == nil {
		return nil, err
	}
	now := a.cfg.now()
	if a.pair != nil && a.trust.signer.issued(a.pair.Leaf) && now.Before(a.pair.Leaf.NotAfter.Add(-servingLife/2)) {
		return a.pair, err
	}
	pair, issueErr := a.trust.signer.issue(a.names, now)
	if issueErr != nil {
		return a.pair, errors.Join(err, fmt.Errorf("issue a serving certificate: %w", issueErr))
	}
	a.pair = pair
	return pair, err
}

// agree returns what the replicas share, after it has brought that up to date. Of several replicas that change it at
// once, the API server lets one win; the others read what that one wrote.
func (a *authority) agree(ctx context.Context) (trust, error) {
	const attempts = 5
	var lost error
	for range attempts {
		t, err := a.tryAgree(ctx)
		if !apierrors.IsAlreadyExists(err) && !apierrors.IsConflict(err) {
			return t, err
		}
		lost = err
	}
	return trust{}, lost
}

func (a *authority) tryAgree(ctx context.Context) (trust, error) {
	secrets := a.cfg.Client.CoreV1().Secrets(a.cfg.Secret.Namespace)
	secret, err := secrets.Get(ctx, a.cfg.Secret.Name, metav1.GetOptions{})
	missing := apierrors.IsNotFound(err)
	if err != nil && !missing {
		return trust{}, err
	}
	var known trust
	if missing {
		secret = &corev1.Secret{ObjectMeta: a.meta(a.cfg.Secret), Type: corev1.SecretTypeOpaque}
	} else if known, err = parseTrust(secret.Data); err != nil {
		return trust{}, fmt.Errorf("%w; delete it to have a new CA made, which clients trust once they have read config map %s again", err, a.cfg.Bundle)
	}
	next, changes, err := known.advance(a.cfg.now())
	if err != nil || len(changes) == 0 {
		return next, err
	}
	if secret, err = fill(secret, next); err != nil {
		return trust{}, err
	}
	if missing {
		_, err = secrets.Create(ctx, secret, metav1.CreateOptions{})
	} else {
		_, err = secrets.Update(ctx, secret, metav1.UpdateOptions{})
	}
	if err == nil {
		a.cfg.Log.Info("certificate authority changed", "secret", a.cfg.Secret.String(), "change", strings.Join(changes, ", "), "expires", next.signer.cert.NotAfter)
	}
	return next, err
}

// fill returns the Secret with other content. What others keep in it stays.
func fill(secret *corev1.Secret, t trust) (*corev1.Secret, error) {
	data, err := t.data()
	if err != nil {
		return nil, err
	}
	secret = secret.DeepCopy()
	if secret.Data == nil {
		secret.Data = map[string][]byte{}
	}
	for _, key := range []string{certFile, keyFile, nextCertFile, nextKeyFile, caFile} {
		delete(secret.Data, key)
		if value, ok := data[key]; ok {
			secret.Data[key] = value
		}
	}
	return secret, nil
}

// publish writes the bundle that clients trust. A replica that lags behind another may write an older bundle, for a minute; what
// that lacks does not sign yet.
func (a *authority) publish(ctx context.Context) error {
	maps := a.cfg.Client.CoreV1().ConfigMaps(a.cfg.Bundle.Namespace)
	bundle := a.trust.bundlePEM()
	existing, err := maps.Get(ctx, a.cfg.Bundle.Name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		created := &corev1.ConfigMap{ObjectMeta: a.meta(a.cfg.Bundle), Data: map[string]string{caFile: string(bundle)}}
		_, err = maps.Create(ctx, created, metav1.CreateOptions{})
	case err == nil && !bytes.Equal([]byte(existing.Data[caFile]), bundle):
		changed := existing.DeepCopy()
		if changed.Data == nil {
			changed.Data = map[string]string{}
		}
		changed.Data[caFile] = string(bundle)
		_, err = maps.Update(ctx, changed, metav1.UpdateOptions{})
	}
	if apierrors.IsAlreadyExists(err) || apierrors.IsConflict(err) {
		return nil // Another replica wrote it; the next look compares.
	}
	return err
}

func (a *authority) meta(name types.NamespacedName) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Namespace: name.Namespace, Name: name.Name,
		Labels: map[string]string{"app.kubernetes.io/name": "fairlead", "app.kubernetes.io/managed-by": "fairlead"},
	}
}
