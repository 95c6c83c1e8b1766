package identity

import (
	"context"
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/sync/singleflight"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	authenticationclient "k8s.io/client-go/kubernetes/typed/authentication/v1"
)

const (
	// acceptedFor and refusedFor are how long a verdict is kept. A token becomes invalid with its pod, so an accepted one is
	// reviewed again; a refused one may be of a pod that the API server does not know yet.
	acceptedFor = 2 * time.Minute
	refusedFor  = 10 * time.Second

	// maxAccepted and maxRefused bound the memory of verdicts, to some megabytes.
	maxAccepted = 16384
	maxRefused  = 1024

	// reviewTimeout bounds one review, and maxReviews how many of new tokens run at once, and as many of tokens that were
	// accepted before: a crowd of tokens must not load the API server. maxReviewsOfAddress bounds how many of one address run or
	// wait, so that the crowd of one address leaves room for others; the pods of a node may share its address.
	reviewTimeout       = 5 * time.Second
	maxReviews          = 64
	maxReviewsOfAddress = 16
)

// account is the service account that a token is of, as the API server says.
type account struct {
	anonymous       bool // There is no token, and nothing else is known.
	namespace, name string
	audiences       []string // Those of ours that the token is for.
	node, pod       string   // That the token is bound to; empty if it is not.
	expires         time.Time
}

// verdict is the kept result of a token's review.
type verdict struct {
	account account
	err     error
	until   time.Time
}

// reviewer has the API server review tokens. It is safe for concurrent use.
type reviewer struct {
	reviews   authenticationclient.TokenReviewInterface
	keys      *keys
	audiences []string // Ours.
	now       func() time.Time
	timeout   time.Duration // Of a review.

	accepted, refused *verdicts          // Apart, so that invented tokens do not push out good ones.
	asking            singleflight.Group // One review a token.
	first, again      chan struct{}      // Have an element for each review that is running: of a new token, of one accepted before.
	places            places             // Of new tokens, by address.
}

// verdicts are by the hash of the token: no token is kept.
type verdicts = lru.Cache[tokenHash, verdict]

type tokenHash = [sha256.Size]byte

func newReviewer(reviews authenticationclient.TokenReviewInterface, k *keys, audiences []string) (*reviewer, error) {
	accepted, err := lru.New[tokenHash, verdict](maxAccepted)
	if err != nil {
		return nil, err
	}
	refused, err := lru.New[tokenHash, verdict](maxRefused)
	if err != nil {
		return nil, err
	}
	return &reviewer{
		reviews: reviews, keys: k, audiences: audiences, now: time.Now, timeout: reviewTimeout, accepted: accepted, refused: refused,
		first: make(chan struct{}, maxReviews), again: make(chan struct{}, maxReviews), places: places{of: map[string]int{}},
	}, nil
}

// review returns whose a token is: as the API server said at most acceptedFor ago, or, while it does not answer, when it
// last did; never after the token has expired. Errors are gRPC statuses: Unauthenticated if the token is not valid,
// Unavailable if the API server could not review it.
func (r *reviewer) review(ctx context.Context, token string) (account, error) {
	key := sha256.Sum256([]byte(token))
	for _, known := range []*verdicts{r.accepted, r.refused} {
		if v, ok := known.Get(key); ok && r.now().Before(v.until) {
			return v.account, v.err
		}
	}
	answer := r.asking.DoChan(string(key[:]), func() (any, error) {
		// Other clients may wait for the review when this one has disconnected.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.timeout)
		defer cancel()
		return r.ask(ctx, key, token), nil
	})
	select {
	case a := <-answer:
		v := a.Val.(verdict)
		return v.account, v.err
	case <-ctx.Done():
		return account{}, status.FromContextError(ctx.Err()).Err()
	}
}

// ask has a token judged, by its own claims and signature and then by the API server, and keeps the verdict.
func (r *reviewer) ask(ctx context.Context, key tokenHash, token string) verdict {
	says, err := readClaims(token)
	if err == nil {
		err = says.check(r.audiences, r.now())
	}
	if err == nil {
		err = r.keys.verify(ctx, token)
	}
	if err != nil {
		return r.refuse(err) // Not worth keeping: the check is nearly as cheap as the look-up.
	}
	before, known := r.accepted.Peek(key)
	answer, err := r.create(ctx, token, known)
	if err != nil && known {
		return r.keep(key, before.account) // The API server is away, and has not said anything else.
	}
	if err != nil {
		return verdict{err: err}
	}
	who, err := r.accept(answer)
	if err != nil {
		v := r.refuse(err)
		r.accepted.Remove(key)
		r.refused.Add(key, v)
		return v
	}
	who.expires = says.expires()
	return r.keep(key, who)
}

// create asks the API server about a token, when it is the token's turn; known says that it was accepted before. The error
// is a gRPC status.
func (r *reviewer) create(ctx context.Context, token string, known bool) (authenticationv1.TokenReviewStatus, error) {
	turn := r.again
	if !known {
		turn = r.first
		address := addressOf(ctx)
		if !r.places.enter(address) {
			return authenticationv1.TokenReviewStatus{}, status.Errorf(codes.Unavailable, "%d tokens from %s are being reviewed: try again", maxReviewsOfAddress, address)
		}
		defer r.places.leave(address)
	}
	select {
	case turn <- struct{}{}:
		defer func() { <-turn }()
	case <-ctx.Done():
		return authenticationv1.TokenReviewStatus{}, status.Error(codes.Unavailable, "too many tokens are being reviewed: try again")
	}
	review := &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: r.audiences}}
	answer, err := r.reviews.Create(ctx, review, metav1.CreateOptions{})
	if err != nil {
		return authenticationv1.TokenReviewStatus{}, status.Errorf(codes.Unavailable, "the API server did not review the token: %v", err)
	}
	return answer.Status, nil
}

func (r *reviewer) refuse(err error) verdict {
	return verdict{err: status.Error(codes.Unauthenticated, err.Error()), until: r.now().Add(refusedFor)}
}

// keep records that a token is accepted for a while.
func (r *reviewer) keep(key tokenHash, who account) verdict {
	v := verdict{account: who, until: r.now().Add(acceptedFor)}
	if who.expires.Before(v.until) {
		v.until = who.expires
	}
	r.accepted.Add(key, v)
	return v
}

// accept returns whose a token is, if the API server vouches for it as a service account's and for one of our audiences.
func (r *reviewer) accept(s authenticationv1.TokenReviewStatus) (account, error) {
	if !s.Authenticated {
		reason := s.Error
		if reason == "" {
			reason = "it gave no reason"
		}
		return account{}, fmt.Errorf("the API server does not accept the token: %s", reason)
	}
	a := account{node: extra(s.User, nodeNameExtra), pod: extra(s.User, podNameExtra)}
	for _, audience := range s.Audiences {
		if slices.Contains(r.audiences, audience) {
			a.audiences = append(a.audiences, audience)
		}
	}
	if len(a.audiences) == 0 {
		// An API server that knows no audiences names none either: it would accept every token of the cluster.
		return account{}, fmt.Errorf("the API server does not say that the token is for %s", strings.Join(r.audiences, " or "))
	}
	var ok bool
	if a.namespace, a.name, ok = serviceAccount(s.User.Username); !ok {
		return account{}, fmt.Errorf("the token is of %q, which is no service account", s.User.Username)
	}
	return a, nil
}

// What the API server says of a bound token in the extra fields of its user, since Kubernetes 1.30 by default.
const (
	nodeNameExtra = "authentication.kubernetes.io/node-name"
	podNameExtra  = "authentication.kubernetes.io/pod-name"
)

// extra returns the value of an extra field. There is one, or it means nothing.
func extra(user authenticationv1.UserInfo, key string) string {
	if values := user.Extra[key]; len(values) == 1 {
		return values[0]
	}
	return ""
}

// serviceAccount returns the parts of the username system:serviceaccount:NAMESPACE:NAME.
func serviceAccount(username string) (namespace, name string, ok bool) {
	rest, ok := strings.CutPrefix(username, "system:serviceaccount:")
	if !ok {
		return "", "", false
	}
	namespace, name, ok = strings.Cut(rest, ":")
	return namespace, name, ok && namespace != "" && name != "" && !strings.Contains(name, ":")
}
