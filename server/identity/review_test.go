package identity

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

// with returns the context of an RPC with a token.
func with(token string) context.Context {
	return metadata.NewIncomingContext(context.Background(), metadata.Pairs(authorizationHeader, bearerPrefix+token))
}

// wantAsks checks how often the API server has been asked.
func (a *apiServer) wantAsks(t *testing.T, want int) {
	t.Helper()
	if got := a.asks(); got != want {
		t.Errorf("the API server was asked %d times, want %d", got, want)
	}
}

// The API server is asked once about a token, however many clients have it, until the verdict is too old.
func TestVerdictsAreRemembered(t *testing.T) {
	api := newAPIServer(t)
	a := api.authenticator(t, nil)
	now := time.Now()
	a.reviewer.now = func() time.Time { return now }
	ctx := with(token(t, agentToken("n1")))

	var clients sync.WaitGroup
	for range 50 {
		clients.Go(func() {
			if _, err := a.Authenticate(ctx); err != nil {
				t.Error(err)
			}
			if err := a.Authorize(ctx, node("n1"), ""); err != nil {
				t.Error(err)
			}
		})
	}
	clients.Wait()
	now = now.Add(acceptedFor - time.Second)
	if err := a.Authorize(ctx, node("n1"), ""); err != nil {
		t.Error(err)
	}
	api.wantAsks(t, 1)

	now = now.Add(2 * time.Second)
	api.set(func() { api.deleted["fairlead-system/fairlead-agent-n1"] = true })
	for range 5 {
		if _, err := a.Authenticate(ctx); status.Code(err) != codes.Unauthenticated {
			t.Errorf("the token of a pod that is gone: %v", err)
		}
	}
	api.wantAsks(t, 2)

	api.set(func() { clear(api.deleted) })
	now = now.Add(refusedFor)
	if _, err := a.Authenticate(ctx); err != nil {
		t.Errorf("after the refusal was forgotten: %v", err)
	}
	api.wantAsks(t, 3)
}

// No verdict outlives its token, and the API server is not bothered with one that has expired.
func TestVerdictsEndWithTheToken(t *testing.T) {
	api := newAPIServer(t)
	a := api.authenticator(t, nil)
	now := time.Now()
	a.reviewer.now = func() time.Time { return now }
	ctx := with(token(t, agentToken("n1").with(func(b *bound) { b.Expires = now.Add(30 * time.Second).Unix() })))
	who, err := a.Authenticate(ctx)
	if err != nil || who.Expires.Unix() != now.Add(30*time.Second).Unix() {
		t.Errorf("%+v, %v", who, err)
	}
	now = now.Add(31 * time.Second)
	if err := a.Authorize(ctx, node("n1"), ""); status.Code(err) != codes.Unauthenticated || !strings.Contains(err.Error(), "expired at") {
		t.Errorf("after the token has expired: %v", err)
	}
	api.wantAsks(t, 1)
}

// While the API server cannot say, nobody new gets in, which is not held against them afterwards; and who was accepted before
// stays, until the token expires.
func TestNobodyCanSay(t *testing.T) {
	api := newAPIServer(t)
	a := api.authenticator(t, nil)
	now := time.Now()
	a.reviewer.now = func() time.Time { return now }
	known, unknown := with(token(t, agentToken("n1"))), with(token(t, agentToken("n2")))
	if _, err := a.Authenticate(known); err != nil {
		t.Fatal(err)
	}
	api.set(func() { api.down = true })
	if _, err := a.Authenticate(known); err != nil {
		t.Errorf("who is known: %v", err)
	}
	now = now.Add(acceptedFor + time.Second)
	if err := a.Authorize(known, node("n1"), ""); err != nil {
		t.Errorf("who was known, when the verdict is old: %v", err)
	}
	if _, err := a.Authenticate(known); err != nil {
		t.Errorf("who was known, on a new stream: %v", err)
	}
	api.wantAsks(t, 2)
	if _, err := a.Authenticate(unknown); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "did not review the token") {
		t.Errorf("who is not: %v", err)
	}
	api.set(func() { api.down = false })
	if _, err := a.Authenticate(unknown); err != nil {
		t.Errorf("later: %v", err)
	}
	api.set(func() { api.down = true })
	now = now.Add(time.Hour)
	if _, err := a.Authenticate(known); status.Code(err) != codes.Unauthenticated || !strings.Contains(err.Error(), "expired at") {
		t.Errorf("who was known, when the token has expired: %v", err)
	}
}

// A token that the API server cannot have signed costs it nothing. A key that it has signed with since is learned, at most
// once in keysInterval, whoever asks.
func TestSignaturesAreCheckedHere(t *testing.T) {
	api := newAPIServer(t)
	a := api.authenticator(t, nil)
	now := time.Now()
	a.reviewer.keys.now = func() time.Time { return now }
	refused := func(key tokenKey, want string) {
		t.Helper()
		if _, err := a.Authenticate(with(sign(t, agentToken("n1"), key))); status.Code(err) != codes.Unauthenticated || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want Unauthenticated: …%s…", err, want)
		}
	}
	wantReads := func(want int) {
		t.Helper()
		api.set(func() {
			if api.read != want {
				t.Errorf("the keys were read %d times, want %d", api.read, want)
			}
		})
	}
	for range 100 {
		refused(forgedKey, "the signature of the token is not of the API server's key")
		refused(unknownKey, `signed with the key "unknown", which the API server does not publish`)
	}
	api.wantAsks(t, 0)
	wantReads(1)

	api.set(func() { api.keys = []tokenKey{clusterKey, nextKey} })
	refused(nextKey, "which the API server does not publish")
	now = now.Add(keysInterval)
	if _, err := a.Authenticate(with(sign(t, agentToken("n1"), nextKey))); err != nil {
		t.Errorf("a key that is new: %v", err)
	}
	refused(unknownKey, "which the API server does not publish")
	wantReads(2)

	api.set(func() { api.silent = true })
	now = now.Add(keysInterval)
	refused(unknownKey, "which the API server does not publish")
	if _, err := a.Authenticate(with(token(t, agentToken("n2")))); err != nil {
		t.Errorf("when the keys can no longer be read: %v", err)
	}
	api.wantAsks(t, 2)
}

// An API server whose keys cannot be read is asked about each token.
func TestNoKeys(t *testing.T) {
	api := newAPIServer(t)
	api.silent = true
	log := &logBuffer{}
	a := api.authenticator(t, func(c *AuthenticatorConfig) { c.Log = log.logger() })
	if _, err := a.Authenticate(with(token(t, agentToken("n1")))); err != nil {
		t.Error(err)
	}
	if _, err := a.Authenticate(with(sign(t, agentToken("n1"), forgedKey))); status.Code(err) != codes.Unauthenticated || !strings.Contains(err.Error(), "cryptographic primitive") {
		t.Errorf("error %v", err)
	}
	api.wantAsks(t, 2)
	if got := log.lines("bind the cluster role system:service-account-issuer-discovery"); len(got) != 1 {
		t.Errorf("the log says %q", got)
	}
}

// The crowd of one address does not keep out another address.
func TestReviewsOfOneAddress(t *testing.T) {
	api := newAPIServer(t)
	api.delay = make(chan struct{})
	a := api.authenticator(t, nil)
	from := func(address string, b bound) error {
		ctx := peer.NewContext(with(token(t, b)), &peer.Peer{Addr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(address), 1))})
		_, err := a.Authenticate(ctx)
		return err
	}
	var crowd sync.WaitGroup
	for i := range maxReviewsOfAddress {
		crowd.Go(func() {
			if err := from("192.0.2.1", podToken("shop", fmt.Sprint(i))); err != nil {
				t.Error(err)
			}
		})
	}
	eventually(t, "the crowd is being reviewed", func() bool { return api.asks() == maxReviewsOfAddress })
	err := from("192.0.2.1", podToken("shop", "one too many"))
	if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "tokens from 192.0.2.1 are being reviewed") {
		t.Errorf("one too many of an address: %v", err)
	}
	delay := api.delay
	api.set(func() { api.delay = nil })
	if err := from("192.0.2.2", agentToken("n1")); err != nil {
		t.Errorf("another address: %v", err)
	}
	close(delay)
	crowd.Wait()
	if len(a.reviewer.places.of) != 0 {
		t.Errorf("places are kept: %v", a.reviewer.places.of)
	}
}

// An API server that knows no audiences accepts every token of the cluster, so its word is not enough.
func TestUnawareAPIServer(t *testing.T) {
	api := newAPIServer(t)
	api.unaware = true
	_, err := api.authenticator(t, nil).Authenticate(with(token(t, agentToken("n1"))))
	if status.Code(err) != codes.Unauthenticated || !strings.Contains(err.Error(), "does not say that the token is for fairlead-agent or fairlead-grpc") {
		t.Errorf("error %v", err)
	}
}

// A crowd of tokens does not become a crowd of questions.
func TestTooManyReviews(t *testing.T) {
	api := newAPIServer(t)
	a := api.authenticator(t, nil)
	a.reviewer.timeout = 50 * time.Millisecond
	for range maxReviews {
		a.reviewer.first <- struct{}{}
	}
	if _, err := a.Authenticate(with(token(t, agentToken("n1")))); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "too many tokens") {
		t.Errorf("error %v", err)
	}
	api.wantAsks(t, 0)
	<-a.reviewer.first
	if _, err := a.Authenticate(with(token(t, agentToken("n1")))); err != nil {
		t.Errorf("later: %v", err)
	}
}

// Whatever is sent as a token costs nothing but an answer.
func FuzzToken(f *testing.F) {
	for _, seed := range []string{"", "a.b.c", "e30.e30.e30", "e30.eyJhdWQiOiJhIiwiZXhwIjoxfQ.", "..", "e30.eyJhdWQiOlsxXX0.x", "e30.bnVsbA.x"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, token string) {
		says, err := readClaims(token)
		if err == nil {
			err = says.check([]string{"fairlead-agent"}, time.Unix(1<<33, 0))
		}
		if err != nil && err.Error() == "" {
			t.Error("an error without a word")
		}
	})
}
