// Package inspect queries control planes and prints their answers for people.
//
// Addresses of admin ports come in, text goes out. It changes nothing.
package inspect

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/fairlead/fairlead/server/controlplane/status"
	"github.com/fairlead/fairlead/server/ops/explain"
)

// ErrUnhealthy is the error of a status that asks for attention. The output has the reasons already.
var ErrUnhealthy = errors.New("not everything is up to date")

// poll is how often Wait queries.
const poll = 100 * time.Millisecond

// get queries one admin port.
func get(ctx context.Context, address, path string, query url.Values, answer any) error {
	u := url.URL{Scheme: "http", Host: address, Path: path, RawQuery: query.Encode()}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return fmt.Errorf("control plane at %s: %w", address, err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("control plane at %s does not answer (its admin port is on loopback: forward it, for instance with kubectl port-forward): %w", address, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return fmt.Errorf("control plane at %s: %w", address, err)
	}
	if resp.StatusCode != http.StatusOK {
		return errors.New(strings.TrimSpace(string(body)))
	}
	if err := json.Unmarshal(body, answer); err != nil {
		return fmt.Errorf("control plane at %s answers what this version does not understand: %w", address, err)
	}
	return nil
}

// Explain queries a control plane about a Service.
func Explain(ctx context.Context, address, service string, nodes []string) (explain.Report, error) {
	var r explain.Report
	return r, get(ctx, address, "/debug/explain", url.Values{"service": {service}, "node": nodes}, &r)
}

// Status prints the state of replicas. It returns ErrUnhealthy if a replica is not ready or not reached, a node is behind or
// rejects what it is sent, or an object has a problem.
func Status(ctx context.Context, addresses []string, w io.Writer) error {
	healthy := true
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprintln(t, "REPLICA\tREADY\tSERVICES\tFRONTENDS\tENDPOINTS\tNODES\tVERSION")
	var all []status.Status
	for _, a := range addresses {
		var s status.Status
		if err := get(ctx, a, "/debug/status", nil, &s); err != nil {
			healthy = false
			fmt.Fprintf(t, "%s\t%s\n", a, "no: "+err.Error())
			continue
		}
		ready := "yes"
		if !s.Ready {
			ready, healthy = "no: "+s.Reason, false
		}
		fmt.Fprintf(t, "%s\t%s\t%d\t%d\t%d\t%d\t%d\n", a, ready, s.World.Services, s.World.Frontends, s.World.Endpoints, s.World.Nodes, s.Publish)
		all = append(all, s)
	}
	t.Flush()
	for _, s := range all {
		healthy = printNodes(w, s) && healthy
	}
	if len(all) > 0 && len(all[0].Problems) > 0 {
		healthy = false
		fmt.Fprintf(w, "\nPROBLEMS\n")
		for _, p := range all[0].Problems {
			fmt.Fprintf(w, "  %s: %s: %s\n", p.Object, p.Reason, p.Message)
		}
	}
	if !healthy {
		return ErrUnhealthy
	}
	return nil
}

// printNodes prints the clients of a replica, and returns whether all are up to date.
func printNodes(w io.Writer, s status.Status) bool {
	if len(s.Nodes) == 0 {
		return true
	}
	healthy := true
	fmt.Fprintln(w)
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprintln(t, "NODE\tVERSION\tSTATE")
	for _, n := range s.Nodes {
		state := "up to date"
		if n.Applied < s.Publish {
			state, healthy = fmt.Sprintf("behind for %.1f s", n.LagSeconds), false
		}
		for _, typ := range n.Types {
			if typ.Nack != "" {
				state, healthy = fmt.Sprintf("rejects %s: %s", typ.Type, typ.Nack), false
			}
		}
		fmt.Fprintf(t, "%s\t%d\t%s\n", n.Node, n.Applied, state)
	}
	t.Flush()
	return healthy
}

// Wait returns when every node forwards the newest change of a Service that the replicas have seen. A node is followed where
// its agent is connected; nodes without an agent count only if all is true. It returns an error that names the nodes that
// lack it when ctx ends.
func Wait(ctx context.Context, addresses []string, service string, all bool) error {
	var missing []string // Of the last time that all replicas answered.
	for {
		now, err := lacking(ctx, addresses, service, all)
		if err == nil && len(now) == 0 {
			return nil
		}
		if err == nil {
			missing = now
		}
		select {
		case <-ctx.Done():
			if err != nil && !errors.Is(err, context.DeadlineExceeded) {
				return err
			}
			return fmt.Errorf("service %s: its newest change is not forwarded on %s", service, strings.Join(missing, ", "))
		case <-time.After(poll):
		}
	}
}

// lacking returns the nodes that do not forward the newest change of a Service.
func lacking(ctx context.Context, addresses []string, service string, all bool) ([]string, error) {
	forwards := map[string]bool{} // By node; present: to be waited for.
	for _, a := range addresses {
		var s status.Service
		if err := get(ctx, a, "/debug/service", url.Values{"service": {service}}, &s); err != nil {
			return nil, err
		}
		for _, n := range s.Nodes {
			if n.Connected || all {
				forwards[n.Node] = forwards[n.Node] || n.Forwards
			}
		}
	}
	var missing []string
	for n, ok := range forwards {
		if !ok {
			missing = append(missing, n)
		}
	}
	slices.Sort(missing)
	if len(forwards) == 0 {
		return []string{"any node: no agent is connected"}, nil
	}
	return missing, nil
}
