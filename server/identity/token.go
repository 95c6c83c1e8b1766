package identity

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/metadata"
)

const (
	authorizationHeader = "authorization"
	bearerPrefix        = "Bearer "

	// maxToken is the longest token looked at, in bytes. Those of Kubernetes have about 1,200.
	maxToken = 8 << 10
)

var errNoToken = errors.New("no token: send a service-account token in the metadata authorization, as Bearer TOKEN")

// bearerToken returns the token that came with an RPC.
func bearerToken(ctx context.Context) (string, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	values := md.Get(authorizationHeader)
	switch {
	case len(values) == 0:
		return "", errNoToken
	case len(values) > 1:
		return "", errors.New("several tokens: send one authorization")
	}
	token, ok := cutPrefixFold(values[0], bearerPrefix)
	switch {
	case !ok || token == "":
		return "", errors.New("no bearer token: the metadata authorization must be Bearer TOKEN")
	case len(token) > maxToken:
		return "", fmt.Errorf("a token of %d bytes: service-account tokens have less than %d", len(token), maxToken)
	}
	return token, nil
}

// cutPrefixFold is strings.CutPrefix for a prefix in any case, which is how HTTP has the scheme of credentials.
func cutPrefixFold(s, prefix string) (string, bool) {
	if len(s) < len(prefix) || !strings.EqualFold(s[:len(prefix)], prefix) {
		return s, false
	}
	return s[len(prefix):], true
}

// claims is what a token says about itself. It proves nothing: anybody can write one. It is read to refuse at once
// what the API server could only refuse, and for the time when a token that was accepted expires.
type claims struct {
	Audiences audiences `json:"aud"`
	Expires   int64     `json:"exp"` // In seconds since 1970.
}

// audiences is a JSON string or list of strings.
type audiences []string

// UnmarshalJSON implements json.Unmarshaler.
func (a *audiences) UnmarshalJSON(b []byte) error {
	var one string
	if json.Unmarshal(b, &one) == nil {
		*a = audiences{one}
		return nil
	}
	return json.Unmarshal(b, (*[]string)(a))
}

// readClaims reads a JSON Web Token.
func readClaims(token string) (claims, error) {
	notJWT := errors.New("the token is no JSON Web Token: use a projected serviceAccountToken volume, or the TokenRequest API")
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return claims{}, notJWT
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return claims{}, notJWT
	}
	var c claims
	if err := json.Unmarshal(payload, &c); err != nil {
		return claims{}, notJWT
	}
	return c, nil
}

func (c claims) expires() time.Time { return time.Unix(c.Expires, 0) }

// check returns why a token with these claims is not valid for the audiences.
func (c claims) check(ours []string, now time.Time) error {
	switch {
	case !slices.ContainsFunc(c.Audiences, func(a string) bool { return slices.Contains(ours, a) }):
		return fmt.Errorf("the token is for the audience %s, not for %s: set audience in the serviceAccountToken volume",
			strings.Join(c.Audiences, ", "), strings.Join(ours, " or "))
	case c.Expires == 0:
		return errors.New("the token never expires: use a projected serviceAccountToken volume, or the TokenRequest API")
	case !now.Before(c.expires()):
		return fmt.Errorf("the token expired at %s: read its file again, the kubelet replaces it in time", c.expires().UTC().Format(time.RFC3339))
	}
	return nil
}
