package inspect

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/fairlead/fairlead/server/controlplane/status"
	"github.com/fairlead/fairlead/server/ops/reach"
)

const (
	// poll is how often Wait asks.
	poll = 200 * time.Millisecond
	// maxNamed is how many nodes are named that have the same reason.
	maxNamed = 5
)

// Wait returns when every node forwards the newest change of a Service that the API server has, or, without one, that the replicas
// have seen: each node that has a Node object, through whichever replica its agent is connected to. When ctx ends it returns
// ErrNotForwarding, with the nodes that do not and why, or ErrUnreachable if a replica does not answer: its nodes may lack it.
func Wait(ctx context.Context, replicas reach.Replicas, service string) error {
	var last error // Of the last look that ctx did not cut short.
	for {
		lacking, err := lacking(ctx, replicas, service)
		switch {
		case err == nil && len(lacking) == 0:
			return nil
		case err == nil:
			last = fmt.Errorf("%w: the newest change of Service %s is not forwarded on\n  %s", ErrNotForwarding, service, strings.Join(byReason(lacking), "\n  "))
		case ctx.Err() == nil || last == nil:
			last = err
		}
		select {
		case <-ctx.Done():
			return last
		case <-time.After(poll):
		}
	}
}

// byReason returns a line for each reason, with the nodes that have it: of a thousand nodes without an agent nobody reads more.
func byReason(reasons map[string]string) []string {
	nodes := map[string][]string{}
	var order []string
	for _, name := range slices.Sorted(maps.Keys(reasons)) {
		reason := strings.ReplaceAll(reasons[name], "\n", "; ") // Of several errors, each has a line.
		if nodes[reason] == nil {
			order = append(order, reason)
		}
		nodes[reason] = append(nodes[reason], name)
	}
	lines := make([]string, len(order))
	for i, reason := range order {
		names, more := nodes[reason], ""
		if n := len(names) - maxNamed; n > 0 {
			names, more = names[:maxNamed], fmt.Sprintf(" and %d more", n)
		}
		lines[i] = strings.Join(names, ", ") + more + ": " + reason
	}
	return lines
}

// lacking returns the nodes that do not forward the newest change of a Service, and why.
func lacking(ctx context.Context, replicas reach.Replicas, service string) (map[string]string, error) {
	all, err := replicas.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	newest, err := replicas.Versions(ctx, service)
	if err != nil {
		return nil, err
	}
	forwards, reasons := map[string]bool{}, map[string]string{}
	for _, r := range all {
		var s status.Service
		if err := get(ctx, r, "/debug/service", url.Values{"service": {service}}, &s); err != nil {
			return nil, err
		}
		if object := unread(s.Versions, newest); object != "" {
			return nil, fmt.Errorf("%w: control plane %s has yet to read the newest version of %s", ErrNotForwarding, r.Name, object)
		}
		for _, n := range s.Nodes {
			forwards[n.Node] = forwards[n.Node] || n.Forwards
			if n.Connected || reasons[n.Node] == "" {
				reasons[n.Node] = n.Reason
			}
		}
	}
	if len(forwards) == 0 {
		return nil, errors.New("there is no node: neither an object nor an agent")
	}
	maps.DeleteFunc(reasons, func(node, _ string) bool { return forwards[node] })
	return reasons, nil
}

// unread returns an object of which a replica has read an older version than the newest, or that it has yet to see deleted; empty if
// there is none. What it has read meanwhile may be newer.
func unread(read, newest map[string]string) string {
	if newest == nil {
		return ""
	}
	for object, version := range newest {
		if older(read[object], version) {
			return object
		}
	}
	for object := range read {
		if _, exists := newest[object]; !exists {
			return object
		}
	}
	return ""
}

// older compares two resource versions. They are numbers that grow, which Kubernetes promises since 1.35 and etcd always kept.
func older(a, b string) bool {
	x, errA := strconv.ParseUint(a, 10, 64)
	y, errB := strconv.ParseUint(b, 10, 64)
	if errA != nil || errB != nil {
		return a != b
	}
	return x < y
}
