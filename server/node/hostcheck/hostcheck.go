// Package hostcheck looks at a node for what stands in the way of Services' packets: what the kernel lacks, and what other programs
// have set up.
//
// The network namespace of the calling process comes in, with /proc and the folder below which the node's files are; a Result for
// each check goes out. It changes nothing on the node. It cannot say whether packets arrive: a rule that it names may let those of
// Services pass, which is why most of what it finds is a Note.
package hostcheck

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/fairlead/fairlead/server/node/envoyns"
)

// Level says how bad a Result is.
type Level string

// The levels, from the best to the worst.
const (
	OK      Level = "ok"
	Note    Level = "note"    // It may stand in the way, or does so in some circumstances.
	Problem Level = "problem" // It breaks what Found says.
	Unknown Level = "unknown" // The check could not look.
)

// Result is what one check has found.
type Result struct {
	Check string `json:"check"`
	Level Level  `json:"level"`
	Found string `json:"found,omitempty"` // What there is, and what it breaks.
	Fix   string `json:"fix,omitempty"`   // What to do about it.
}

// Config says where to look.
type Config struct {
	Root string // The folder below which the node's files are; "/", or where a container has them. Empty: they are not visible.
	// Proxy are the URLs at which a kube-proxy that runs on this node answers; the first tells which program it is.
	Proxy []string
}

// DefaultConfig returns where a command on the node looks.
func DefaultConfig() Config {
	return Config{Root: "/", Proxy: []string{"http://127.0.0.1:10249/proxyMode", "http://127.0.0.1:10256/healthz"}}
}

// check is one check. It returns what it has found wrong, or nil.
type check struct {
	name string
	find func(ctx context.Context, h *host) ([]Result, error)
}

// checks are all checks, in the order of their output.
var checks = []check{
	{"kernel", kernel},
	{"ip-forwarding", forwarding},
	{"rp-filter", reversePath},
	{"conntrack", conntrack},
	{"mtu", mtu},
	{"source-nat", sourceNAT},
	{"destination-nat", destinationNAT},
	{"kube-proxy", kubeProxy},
	{"earlier-rules", earlierRules},
	{"forward-policy", forwardPolicy},
	{"network-policy", networkPolicy},
	{"bpf", bpf},
	{"networkd", networkd},
}

// host is what the checks look at.
type host struct {
	config Config
	rules  *ruleset
	links  []link
}

// ErrProblems means that a check has found a Problem.
var ErrProblems = errors.New("something stands in the way of Services' packets on this node")

// Run carries out all checks. An error of one check is its Result; Run returns one only if nothing at all can be seen.
func Run(ctx context.Context, config Config) ([]Result, error) {
	rules, err := readChains(ctx)
	if err != nil {
		return nil, err
	}
	links, err := readLinks()
	if err != nil {
		return nil, err
	}
	h := &host{config: config, rules: rules, links: links}
	var results []Result
	for _, c := range checks {
		found, err := c.find(ctx, h)
		if err != nil {
			found = append(found, Result{Level: Unknown, Found: err.Error()})
		}
		if len(found) == 0 {
			found = []Result{{Level: OK}}
		}
		for _, r := range found {
			r.Check = c.name
			results = append(results, r)
		}
	}
	return results, ctx.Err()
}

// Err returns ErrProblems if there is a Problem among the results.
func Err(results []Result) error {
	for _, r := range results {
		if r.Level == Problem {
			return ErrProblems
		}
	}
	return nil
}

// sysctl returns a setting of the network namespace, without the space around it; empty if the kernel does not have it.
func sysctl(name string) (string, error) {
	content, err := os.ReadFile("/proc/sys/net/" + name)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("read sysctl: %w", err)
	}
	return strings.TrimSpace(string(content)), nil
}

// path returns the place of one of the node's files.
func (h *host) path(name string) string { return filepath.Join(h.config.Root, name) }

// isOurs reports whether a link is Fairlead's.
func isOurs(name string) bool { return envoyns.IsLink(name) }
