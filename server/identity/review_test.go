package identity

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
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

// While the API server cannot say, nobody new gets in, which is not held against them afterwards.
func TestNobodyCanSay(t *testing.T) {
	api := newAPIServer(t)
	a := api.authenticator(t, nil)
	known, unknown := with(token(t, agentToken("n1"))), with(token(t, agentToken("n2")))
	if _, err := a.Authenticate(known); err != nil {
		t.Fatal(err)
	}
	api.set(func() { api.down = true })
	if _, err := a.Authenticate(known); err != nil {
		t.Errorf("who is known: %v", err)
	}
	if _, err := a.Authenticate(unknown); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "did not review the token") {
		t.Errorf("who is not: %v", err)
	}
	api.set(func() { api.down = false })
	if _, err := a.Authenticate(unknown); err != nil {
		t.Errorf("later: %v", err)
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
		a.reviewer.slots <- struct{}{}
	}
	if _, err := a.Authenticate(with(token(t, agentToken("n1")))); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "too many tokens") {
		t.Errorf("error %v", err)
	}
	api.wantAsks(t, 0)
	<-a.reviewer.slots
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
