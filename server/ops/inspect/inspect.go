// Package inspect queries control planes and prints their answers for people.
//
// A way to the replicas comes in (package reach), text, JSON or YAML goes out. It changes nothing.
package inspect

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/fairlead/fairlead/server/ops/explain"
	"github.com/fairlead/fairlead/server/ops/reach"
)

// The errors by which commands end when the answer asks for attention, the most urgent first. The output has the reasons.
var (
	// ErrUnreachable means that a replica gives no answer, so that nobody knows about the nodes whose agents it has.
	ErrUnreachable = errors.New("a control plane does not answer")
	// ErrNotForwarding means that a node does not forward what it should, or that a replica is not ready.
	ErrNotForwarding = errors.New("not every node forwards")
	// ErrProblems means that there are objects with problems.
	ErrProblems = errors.New("objects have problems")
)

// askTimeout is how long a replica may take to answer.
const askTimeout = 5 * time.Second

// get queries one replica.
func get(ctx context.Context, r reach.Replica, path string, query url.Values, answer any) error {
	if r.Err != nil {
		return fmt.Errorf("%w: %s: %w", ErrUnreachable, r.Name, r.Err)
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	u := url.URL{Scheme: "http", Host: r.Address, Path: path, RawQuery: query.Encode()}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return fmt.Errorf("control plane %s: %w", r.Name, err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("%w: %s: %w", ErrUnreachable, r.Name, cause(err))
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return fmt.Errorf("%w: %s: %w", ErrUnreachable, r.Name, cause(err))
	}
	if resp.StatusCode != http.StatusOK {
		return errors.New(strings.TrimSpace(string(body)))
	}
	if err := json.Unmarshal(body, answer); err != nil {
		return fmt.Errorf("control plane %s answers what this version does not understand: %w", r.Name, err)
	}
	return nil
}

// cause returns an error of an HTTP client without the URL that it begins with.
func cause(err error) error {
	var of *url.Error
	if errors.As(err, &of) {
		return of.Err
	}
	return err
}

// Explain queries control planes about a Service. Each knows all of them; the first that answers is enough.
func Explain(ctx context.Context, replicas reach.Replicas, service string, nodes []string) (explain.Report, error) {
	all, err := replicas.List(ctx)
	if err != nil {
		return explain.Report{}, fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	var r explain.Report
	for _, replica := range all {
		if err = get(ctx, replica, "/debug/explain", url.Values{"service": {service}, "node": nodes}, &r); !errors.Is(err, ErrUnreachable) {
			return r, err
		}
	}
	return r, err
}

// Encode writes a value as JSON or YAML, with the same keys.
func Encode(w io.Writer, format string, value any) error {
	if format == "yaml" {
		text, err := yaml.Marshal(value)
		if err != nil {
			return err
		}
		_, err = w.Write(text)
		return err
	}
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(value)
}
