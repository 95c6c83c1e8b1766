package identity

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
)

var (
	secretName = types.NamespacedName{Namespace: "fairlead-system", Name: "fairlead-ca"}
	bundleName = types.NamespacedName{Namespace: "fairlead-system", Name: "fairlead-bundle"}
)

// replicas are control planes that share a Secret, and a clock.
type replicas struct {
	client *fake.Clientset // For the test itself.
	react  clienttesting.ReactionFunc
	now    time.Time
}

func newReplicas(objects ...runtime.Object) *replicas {
	r := &replicas{client: fake.NewClientset(objects...), now: time.Now()}
	r.react = clienttesting.ObjectReaction(r.client.Tracker())
	return r
}

// start starts a replica with a client of its own, all of whose requests react answers.
func (r *replicas) start(names ...string) *Certificates {
	client := fake.NewClientset()
	client.PrependReactor("*", "*", func(a clienttesting.Action) (bool, runtime.Object, error) { return r.react(a) })
	return FromAuthority(AuthorityConfig{
		Client: client, Secret: secretName, Bundle: bundleName, Names: names, now: func() time.Time { return r.now },
	})
}

// bundle returns what clients are told to trust.
func (r *replicas) bundle(t *testing.T) []byte {
	t.Helper()
	m, err := r.client.CoreV1().ConfigMaps(bundleName.Namespace).Get(context.Background(), bundleName.Name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return []byte(m.Data[caFile])
}

func (r *replicas) secret(t *testing.T) *corev1.Secret {
	t.Helper()
	s, err := r.client.CoreV1().Secrets(secretName.Namespace).Get(context.Background(), secretName.Name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// issue has a replica renew what it serves with, and returns that.
func issue(t *testing.T, c *Certificates) *x509.Certificate {
	t.Helper()
	pair, err := c.renew(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return pair.Leaf
}

// trusted reports whether a client with a bundle believes a certificate, for a name and at a time.
func trusted(bundle []byte, cert *x509.Certificate, name string, at time.Time) error {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(bundle)
	_, err := cert.Verify(x509.VerifyOptions{Roots: roots, DNSName: name, CurrentTime: at})
	return err
}

// Replicas that start at the same moment agree on one CA, whichever of them the API server lets win.
func TestReplicasAgree(t *testing.T) {
	for _, test := range []struct {
		name, verb string
		objects    []runtime.Object
	}{
		{"none exists", "create", nil},
		{"an empty one exists", "update", []runtime.Object{&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: secretName.Namespace, Name: secretName.Name}}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := newReplicas(test.objects...)
			// Both have seen that there is no CA before either of them writes. The fake does not compare versions.
			var race sync.WaitGroup
			race.Add(2)
			var mu sync.Mutex
			writes, store := 0, r.react
			r.react = func(a clienttesting.Action) (bool, runtime.Object, error) {
				if !a.Matches(test.verb, "secrets") {
					return store(a)
				}
				race.Done()
				race.Wait()
				mu.Lock()
				defer mu.Unlock()
				if writes++; writes > 1 && test.verb == "update" {
					return true, nil, apierrors.NewConflict(schema.GroupResource{Resource: "secrets"}, secretName.Name, errors.New("changed meanwhile"))
				}
				return store(a)
			}
			certs := make([]*x509.Certificate, 2)
			var starting sync.WaitGroup
			for i := range certs {
				starting.Go(func() { certs[i] = issue(t, r.start()) })
			}
			starting.Wait()
			if n := bytes.Count(r.bundle(t), []byte("BEGIN")); n != 1 {
				t.Errorf("clients are told to trust %d CAs", n)
			}
			for i, cert := range certs {
				if err := trusted(r.bundle(t), cert, DefaultServerName, r.now); err != nil {
					t.Errorf("replica %d: %v", i, err)
				}
			}
			if certs[0].Equal(certs[1]) {
				t.Error("replicas share a certificate, and so its key")
			}
		})
	}
}

// Over years a CA follows another, and a client that reads the bundle once in a fortnight never meets a certificate that
// it does not trust.
func TestRotation(t *testing.T) {
	r := newReplicas()
	replica, other := r.start(), r.start()
	var read []byte // What the slow client knows.
	authorities, most := map[string]bool{}, 0
	for week := range 5 * 52 {
		certs := []*x509.Certificate{issue(t, replica), issue(t, other)}
		if week%2 == 0 {
			read = r.bundle(t)
		}
		for _, cert := range certs {
			if err := trusted(read, cert, DefaultServerName, r.now); err != nil {
				t.Fatalf("week %d: %v", week, err)
			}
			authorities[cert.Issuer.String()] = true
		}
		most = max(most, bytes.Count(read, []byte("BEGIN")))
		r.now = r.now.Add(7 * 24 * time.Hour)
	}
	if len(authorities) != 4 || most != 2 {
		t.Errorf("%d CAs in five years, %d at once; want a new one every year and a half, and two", len(authorities), most)
	}
	if keys := slices.Sorted(maps.Keys(r.secret(t).Data)); !slices.Equal(keys, []string{caFile, certFile, keyFile}) &&
		!slices.Equal(keys, []string{caFile, nextCertFile, nextKeyFile, certFile, keyFile}) {
		t.Errorf("the Secret holds %v", keys)
	}
}

// A control plane that was off for years makes a new CA, and clients are told to forget the old one.
func TestLongAbsence(t *testing.T) {
	r := newReplicas()
	old := issue(t, r.start())
	r.now = r.now.Add(caLife + time.Hour)
	cert := issue(t, r.start())
	if err := trusted(r.bundle(t), cert, DefaultServerName, r.now); err != nil {
		t.Error(err)
	}
	if bytes.Count(r.bundle(t), []byte("BEGIN")) != 1 || cert.Issuer.String() == old.Issuer.String() {
		t.Error("the old CA is still there")
	}
}

// A certificate is renewed well before it ends, also while the API server does not answer, and not before that.
func TestServingCertificate(t *testing.T) {
	r := newReplicas()
	replica := r.start("fairlead.fairlead-system.svc", "10.1.2.3", "fd00::1", "10.1.2.3")
	first := issue(t, replica)
	for _, name := range []string{DefaultServerName, "fairlead.fairlead-system.svc", "10.1.2.3", "fd00::1"} {
		if err := first.VerifyHostname(name); err != nil {
			t.Error(err)
		}
	}
	if len(first.IPAddresses) != 2 || first.IsCA {
		t.Errorf("made out to %v, CA %t", first.IPAddresses, first.IsCA)
	}
	r.now = r.now.Add(servingLife / 3)
	if !issue(t, replica).Equal(first) {
		t.Error("renewed too soon")
	}
	r.react = func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, nil, errors.New("connection refused")
	}
	r.now = r.now.Add(servingLife / 3)
	pair, err := replica.renew(context.Background())
	if err == nil || !strings.Contains(err.Error(), "secret fairlead-system/fairlead-ca: connection refused") {
		t.Errorf("error %v", err)
	}
	if pair == nil || pair.Leaf.Equal(first) || pair.Leaf.Issuer.String() != first.Issuer.String() {
		t.Fatal("not renewed while the API server does not answer")
	}
}

// A replica that has no CA yet says why, and serves as soon as it has one.
func TestNoAPIServer(t *testing.T) {
	r := newReplicas()
	log := &logBuffer{}
	var up atomic.Bool
	store := r.react
	r.react = func(a clienttesting.Action) (bool, runtime.Object, error) {
		if up.Load() {
			return store(a)
		}
		return true, nil, errors.New("connection refused")
	}
	replica := r.start()
	replica.log, replica.interval = log.logger(), time.Millisecond
	run(t, replica)
	eventually(t, "the log says what is wrong", func() bool { return len(log.lines("level=ERROR", "connection refused")) == 1 })
	if !replica.Expires().IsZero() {
		t.Error("a certificate from nowhere")
	}
	up.Store(true)
	select {
	case <-replica.Ready():
	case <-time.After(deadline):
		t.Fatal("never ready")
	}
	if n := len(log.lines("level=ERROR")); n != 1 {
		t.Errorf("%d errors in the log, want the one", n)
	}
}

// A Secret that cannot be read is left alone.
func TestDamagedSecret(t *testing.T) {
	r := newReplicas(&corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: secretName.Namespace, Name: secretName.Name},
		Data:       map[string][]byte{certFile: []byte("x"), keyFile: []byte("y")},
	})
	_, err := r.start().renew(context.Background())
	if err == nil || !strings.Contains(err.Error(), "secret fairlead-system/fairlead-ca") || !strings.Contains(err.Error(), "delete it to have a new CA made") {
		t.Errorf("error %v", err)
	}
	if got := string(r.secret(t).Data[certFile]); got != "x" {
		t.Errorf("the Secret was changed to %q", got)
	}
}

// Somebody may bring a CA of his own, and what else is in the Secret and the ConfigMap is not ours.
func TestOwnCA(t *testing.T) {
	ca, err := newSigner(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	key, err := encodeKey(ca.key)
	if err != nil {
		t.Fatal(err)
	}
	meta := func(n types.NamespacedName) metav1.ObjectMeta {
		return metav1.ObjectMeta{Namespace: n.Namespace, Name: n.Name}
	}
	r := newReplicas(
		&corev1.Secret{ObjectMeta: meta(secretName), Data: map[string][]byte{certFile: encodeCert(ca.cert), keyFile: key, "note": []byte("ours")}},
		&corev1.ConfigMap{ObjectMeta: meta(bundleName), Data: map[string]string{caFile: "stale", "note": "ours"}},
	)
	cert := issue(t, r.start())
	if err := cert.CheckSignatureFrom(ca.cert); err != nil {
		t.Error(err)
	}
	if err := trusted(r.bundle(t), cert, DefaultServerName, r.now); err != nil {
		t.Error(err)
	}
	m, err := r.client.CoreV1().ConfigMaps(bundleName.Namespace).Get(context.Background(), bundleName.Name, metav1.GetOptions{})
	if err != nil || m.Data["note"] != "ours" || string(r.secret(t).Data["note"]) != "ours" {
		t.Errorf("what else was there is gone: %v, %v", m.Data, err)
	}

	leaf := newFiles(t, time.Now(), "x")
	r = newReplicas(&corev1.Secret{ObjectMeta: meta(secretName), Data: map[string][]byte{certFile: leaf[certFile], keyFile: leaf[keyFile]}})
	if _, err := r.start().renew(context.Background()); err == nil || !strings.Contains(err.Error(), "not the certificate and key of a CA") {
		t.Errorf("a certificate that is no CA: %v", err)
	}
}
