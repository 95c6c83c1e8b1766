package identity

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"golang.org/x/sync/singleflight"
	"k8s.io/client-go/kubernetes"
)

const (
	// keysPath is where an API server publishes the keys that service-account tokens are signed with, as a JSON Web Key
	// Set. The cluster role system:service-account-issuer-discovery lets one read it.
	keysPath = "/openid/v1/jwks"

	// keysType is the one form in which it does: to a request that accepts others alone, as those of a client for protobuf
	// do, it answers 406.
	keysType = "application/jwk-set+json"

	// keysInterval is how often the keys are read at most. An API server signs with a new key only once it has restarted, and
	// whoever invents a token can name a key that nobody knows.
	keysInterval = 10 * time.Second
)

// algorithms are those that API servers sign service-account tokens with. All are asymmetric: a public key is no secret that a
// token could be signed with.
var algorithms = []jose.SignatureAlgorithm{jose.RS256, jose.ES256, jose.ES384, jose.ES512}

// keys are the public keys of the API server. They are read when a token names one that is not known. They are safe for
// concurrent use.
type keys struct {
	read    func(context.Context) ([]byte, error) // Returns the JSON Web Key Set.
	now     func() time.Time
	reading singleflight.Group // One read at a time, for all who wait for it.

	mu    sync.Mutex // Guards what follows.
	known *jose.JSONWebKeySet
	tried time.Time // When they were last read, or should have been.
	log   repeated
}

func newKeys(read func(context.Context) ([]byte, error), log *slog.Logger) *keys {
	return &keys{read: read, now: time.Now, log: repeated{log: orDiscard(log)}}
}

// publishedKeys returns what reads the keys that an API server publishes.
func publishedKeys(client kubernetes.Interface) func(context.Context) ([]byte, error) {
	return func(ctx context.Context) ([]byte, error) {
		return client.Discovery().RESTClient().Get().AbsPath(keysPath).SetHeader("Accept", keysType).DoRaw(ctx)
	}
}

// verify checks the signature of a token. It has no error for a token that nobody but the API server can judge, because the
// keys could not be read yet.
func (k *keys) verify(ctx context.Context, token string) error {
	signed, err := jose.ParseSignedCompact(token, algorithms)
	if err != nil {
		return fmt.Errorf("the token is not signed as the API server signs: %w", err)
	}
	id := signed.Signatures[0].Header.KeyID
	found, ok := k.find(id)
	if len(found) == 0 {
		k.reading.Do("", func() (any, error) {
			k.refresh(ctx)
			return nil, nil
		})
		found, ok = k.find(id)
	}
	switch {
	case !ok:
		return nil
	case len(found) == 0:
		return fmt.Errorf("the token is signed with the key %.64q, which the API server does not publish in %s", id, keysPath)
	}
	for _, key := range found {
		if _, err := signed.Verify(key); err == nil {
			return nil
		}
	}
	return errors.New("the signature of the token is not of the API server's key that the token names")
}

// find returns the keys with an ID, and whether any are known.
func (k *keys) find(id string) (found []jose.JSONWebKey, ok bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.known == nil {
		return nil, false
	}
	return k.known.Key(id), true
}

// refresh reads the keys, unless that was tried a short while ago. If it fails, those known before count on.
func (k *keys) refresh(ctx context.Context) {
	k.mu.Lock()
	early := k.now().Before(k.tried.Add(keysInterval))
	if !early {
		k.tried = k.now()
	}
	k.mu.Unlock()
	if early {
		return
	}
	set := &jose.JSONWebKeySet{}
	content, err := k.read(ctx)
	if err == nil {
		err = json.Unmarshal(content, set)
	}
	if err == nil && len(set.Keys) == 0 {
		err = errors.New("the set is empty")
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.log.report("the API server's keys could not be read, and every token is sent to it for review: bind the cluster role system:service-account-issuer-discovery", err)
	if err == nil {
		k.known = set
	}
}
