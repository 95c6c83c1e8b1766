package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"go.uber.org/goleak"
	authenticationv1 "k8s.io/api/authentication/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// deadline bounds every wait of these tests; no test waits for it to pass.
const deadline = 10 * time.Second

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("k8s.io/klog/v2.(*flushDaemon).run.func1"))
}

// eventually waits for a condition.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for timeout := time.After(deadline); !holds(); {
		select {
		case <-tick.C:
		case <-timeout:
			t.Fatalf("never: %s", what)
		}
	}
}

// apiServer issues tokens and reviews them, as an API server does for bound service-account tokens.
type apiServer struct {
	client kubernetes.Interface

	mu      sync.Mutex // Guards what follows.
	asked   int        // How many reviews.
	read    int        // How often its keys were.
	down    bool
	delay   chan struct{}   // Until it is closed, reviews wait; nil if they do not.
	keys    []tokenKey      // Of which it accepts signatures, and which it publishes.
	silent  bool            // It publishes none.
	unaware bool            // Of audiences, as API servers once were.
	deleted map[string]bool // Pods by namespace/name, whose tokens are no longer good.
}

// bound is what a token says. The zero value of a field leaves it out.
type bound struct {
	Audience  []string `json:"aud,omitempty"`
	Subject   string   `json:"sub,omitempty"`
	Expires   int64    `json:"exp,omitempty"`
	Node, Pod string
}

func newAPIServer(t testing.TB) *apiServer {
	t.Helper()
	a := &apiServer{deleted: map[string]bool{}, keys: []tokenKey{clusterKey}}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /apis/authentication.k8s.io/v1/tokenreviews", a.review)
	mux.HandleFunc("GET /openid/v1/jwks", a.publish)
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	client, err := kubernetes.NewForConfig(&rest.Config{
		Host: server.URL, QPS: -1,
		ContentConfig: rest.ContentConfig{ContentType: "application/json", AcceptContentTypes: "application/json"},
	})
	if err != nil {
		t.Fatal(err)
	}
	a.client = client
	return a
}

// agentToken returns what an agent's token on a node says.
func agentToken(node string) bound {
	return bound{
		Audience: []string{DefaultAgentAudience}, Subject: "system:serviceaccount:fairlead-system:fairlead-agent",
		Expires: time.Now().Add(time.Hour).Unix(), Node: node, Pod: "fairlead-agent-" + node,
	}
}

// podToken returns what the token of a pod that speaks gRPC says.
func podToken(namespace, pod string) bound {
	return bound{
		Audience: []string{DefaultGRPCAudience}, Subject: "system:serviceaccount:" + namespace + ":default",
		Expires: time.Now().Add(time.Hour).Unix(), Node: "n1", Pod: pod,
	}
}

// with returns what the token says after a change.
func (b bound) with(change func(*bound)) bound {
	change(&b)
	return b
}

// tokenKey is a key that tokens are signed with.
type tokenKey struct {
	id      string
	private *ecdsa.PrivateKey
}

func newTokenKey(id string) tokenKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err) // Of a test's variable: there is no test to fail yet.
	}
	return tokenKey{id, key}
}

var (
	clusterKey = newTokenKey("cluster")
	nextKey    = newTokenKey("next")    // What the cluster signs with later.
	forgedKey  = newTokenKey("cluster") // Somebody's own, by the name of the cluster's.
	unknownKey = newTokenKey("unknown")
)

// sign makes a token of what it says.
func sign(t testing.TB, b bound, key tokenKey) string {
	t.Helper()
	payload, err := json.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key.private, KeyID: key.id}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := signer.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	text, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// token returns a token that the API server accepts while it says the truth.
func token(t testing.TB, b bound) string { return sign(t, b, clusterKey) }

// publish answers with the keys.
func (a *apiServer) publish(w http.ResponseWriter, r *http.Request) {
	if !strings.Contains(r.Header.Get("Accept"), "application/jwk-set+json") { // An API server has no other form of them.
		http.Error(w, "not acceptable", http.StatusNotAcceptable)
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.read++
	if a.down || a.silent {
		http.Error(w, "not now", http.StatusForbidden)
		return
	}
	set := jose.JSONWebKeySet{}
	for _, key := range a.keys {
		set.Keys = append(set.Keys, jose.JSONWebKey{Key: key.private.Public(), KeyID: key.id, Algorithm: "ES256", Use: "sig"})
	}
	json.NewEncoder(w).Encode(set)
}

// payload returns what a token says, if one of the keys has signed it.
func (a *apiServer) payload(token string) (payload []byte, ok bool) {
	signed, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		return nil, false
	}
	for _, key := range a.keys {
		if payload, err := signed.Verify(key.private.Public()); err == nil {
			return payload, true
		}
	}
	return nil, false
}

func (a *apiServer) review(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	a.asked++
	delay := a.delay
	a.mu.Unlock()
	if delay != nil {
		<-delay
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.down {
		http.Error(w, "etcd is away", http.StatusInternalServerError)
		return
	}
	var review authenticationv1.TokenReview
	if err := json.NewDecoder(r.Body).Decode(&review); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	review.Status = a.judge(review.Spec)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusCreated)
	json.NewEncoder(w).Encode(review)
}

func (a *apiServer) judge(spec authenticationv1.TokenReviewSpec) authenticationv1.TokenReviewStatus {
	refuse := func(why string) authenticationv1.TokenReviewStatus {
		return authenticationv1.TokenReviewStatus{Error: "[invalid bearer token, " + why + "]"}
	}
	payload, ok := a.payload(spec.Token)
	if !ok {
		return refuse("go-jose/go-jose: error in cryptographic primitive")
	}
	var b bound
	if err := json.Unmarshal(payload, &b); err != nil {
		return refuse(err.Error())
	}
	namespace := strings.Split(b.Subject, ":")[2]
	if a.deleted[namespace+"/"+b.Pod] {
		return refuse("service account token has been invalidated")
	}
	s := authenticationv1.TokenReviewStatus{
		Authenticated: true,
		User:          authenticationv1.UserInfo{Username: b.Subject, Extra: map[string]authenticationv1.ExtraValue{}},
	}
	for _, audience := range b.Audience {
		if slices.Contains(spec.Audiences, audience) && !a.unaware {
			s.Audiences = append(s.Audiences, audience)
		}
	}
	if b.Node != "" {
		s.User.Extra["authentication.kubernetes.io/node-name"] = authenticationv1.ExtraValue{b.Node}
	}
	if b.Pod != "" {
		s.User.Extra["authentication.kubernetes.io/pod-name"] = authenticationv1.ExtraValue{b.Pod}
	}
	return s
}

// set changes the API server.
func (a *apiServer) set(change func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	change()
}

func (a *apiServer) asks() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.asked
}

// authenticator returns an authenticator that asks the API server, with the usual names.
func (a *apiServer) authenticator(t testing.TB, change func(*AuthenticatorConfig)) *Authenticator {
	t.Helper()
	cfg := AuthenticatorConfig{
		Client:        a.client,
		AgentAudience: DefaultAgentAudience,
		AgentAccount:  types.NamespacedName{Namespace: "fairlead-system", Name: "fairlead-agent"},
		GRPCAudience:  DefaultGRPCAudience,
	}
	if change != nil {
		change(&cfg)
	}
	authenticator, err := NewAuthenticator(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return authenticator
}
