package hostcheck

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"
)

// The priorities of Fairlead's chains, see package dataplane, which another program's chain has to exceed to come after them.
const (
	manglePriority  = -150 // prerouting and output, which decide.
	dnatPriority    = -100 // nat-prerouting and nat-output.
	toEnvoyPriority = 90   // nat-to-envoy, which keeps the client's source.
)

// sourceNAT finds the source NAT of other programs, such as a CNI plugin's masquerade, that is evaluated before Fairlead's.
func sourceNAT(ctx context.Context, h *host) ([]Result, error) {
	return h.rules.find(ctx, h.rules.base("nat", "postrouting"), toEnvoyPriority, []string{"masquerade", "snat"}, func(c chain, what string) Result {
		return Result{Level: Problem,
			Found: fmt.Sprintf("%s has %s at priority %d, before Fairlead keeps the source of connections to Envoy (priority %d): "+
				"pods see this node's address instead of the client's, and NetworkPolicies decide by it", c, what, c.Prio, toEnvoyPriority),
			Fix: "give the chain priority srcnat (100), or have it leave alone what goes out by links named fl*",
		}
	})
}

// destinationNAT finds what rewrites destinations before Fairlead's chains that do.
func destinationNAT(ctx context.Context, h *host) ([]Result, error) {
	chains := h.rules.base("nat", "prerouting", "output")
	return h.rules.find(ctx, chains, dnatPriority-1, []string{"dnat", "redirect"}, func(c chain, what string) Result {
		return Result{Level: Problem,
			Found: fmt.Sprintf("%s has %s at priority %d, before Fairlead's (%d): a Service's packets that it matches go elsewhere", c, what, c.Prio, dnatPriority),
			Fix:   "give the chain priority dstnat (-100) or later, or have it leave the addresses of Services alone",
		}
	})
}

// earlierRules finds rules that may take packets before Fairlead has decided about them.
func earlierRules(ctx context.Context, h *host) ([]Result, error) {
	chains := slices.Concat(h.rules.base("filter", "prerouting", "output"), h.rules.base("route", "output"))
	return h.rules.find(ctx, chains, manglePriority, []string{"drop", "reject", "queue", "notrack", "tproxy"}, func(c chain, what string) Result {
		return Result{Level: Note,
			Found: fmt.Sprintf("%s has %s at priority %d, before or beside Fairlead's chains (%d): packets to Services that it matches do not get to Envoy",
				c, what, c.Prio, manglePriority),
			Fix: "if clients on this node cannot reach Services, look whether its rules match them, and give the chain a later priority",
		}
	})
}

// find returns a Result for each of the chains up to a priority that comes to one of the statements.
func (r *ruleset) find(ctx context.Context, chains []chain, last int, statements []string, result func(chain, string) Result) ([]Result, error) {
	var results []Result
	for _, c := range chains {
		if c.Prio > last {
			continue
		}
		found, err := r.statements(ctx, c)
		if err != nil {
			return results, err
		}
		there := slices.DeleteFunc(slices.Clone(statements), func(s string) bool { return !found[s] })
		if len(there) > 0 {
			results = append(results, result(c, strings.Join(there, ", ")))
		}
	}
	return results, nil
}

// forwardPolicy finds chains that drop what none of their rules accepts.
func forwardPolicy(_ context.Context, h *host) ([]Result, error) {
	var results []Result
	for _, c := range h.rules.base("filter", "forward") {
		if c.Policy == "drop" {
			results = append(results, Result{Level: Note,
				Found: fmt.Sprintf("%s drops what none of its rules accepts, and connections between pods and Envoy cross it", c),
				Fix:   "if no Service with endpoints answers on this node, have it accept what comes in or goes out by links named fl*",
			})
		}
	}
	return results, nil
}

// engines are the programs that enforce NetworkPolicies, by how the names of their chains or tables begin, with where they look.
var engines = []struct{ prefix, name string }{
	{"KUBE-ROUTER-", "kube-router"}, {"kube-router", "kube-router"}, {"cali-", "Calico"}, {"calico", "Calico"},
	{"CILIUM_", "Cilium"}, {"ANTREA-", "Antrea"}, {"WEAVE-NPC", "Weave Net"}, {"KUBE-NWPLCY", "kube-router"}, {"kube-network-policies", "kube-network-policies"},
}

// networkPolicy finds engines of NetworkPolicies. They see a pod's packet to a Service before its endpoint is chosen.
func networkPolicy(_ context.Context, h *host) ([]Result, error) {
	var names []string
	for _, c := range h.rules.chains {
		for _, e := range engines {
			if (strings.HasPrefix(c.Name, e.prefix) || strings.HasPrefix(c.Table, e.prefix)) && !slices.Contains(names, e.name) {
				names = append(names, e.name)
			}
		}
	}
	if len(names) == 0 {
		return nil, nil
	}
	return []Result{{Level: Note,
		Found: strings.Join(names, ", ") + " filters here: an egress NetworkPolicy is asked about a Service's own address, since the endpoint is chosen later. " +
			"It fails closed: pods that may only send to certain pods reach these by no Service",
		Fix: "let egress policies allow the Service network, too; ingress policies see the client and need nothing",
	}}, nil
}

// kubeProxy finds rules that a kube-proxy has left which no longer runs.
func kubeProxy(ctx context.Context, h *host) ([]Result, error) {
	var there []string
	for _, c := range h.rules.chains {
		name := ""
		switch {
		case c.Table == "kube-proxy":
			name = "table " + c.Family + " kube-proxy"
		case c.Name == "KUBE-SERVICES":
			name = c.String()
		}
		if name != "" && !slices.Contains(there, name) {
			there = append(there, name)
		}
	}
	if len(there) == 0 || h.proxyAnswers(ctx) {
		return nil, nil
	}
	return []Result{{Level: Problem,
		Found: strings.Join(there, ", ") + " are kube-proxy's, and no kube-proxy answers on this node: rules that nobody keeps up send or drop packets by endpoints of the past",
		Fix:   "run kube-proxy --cleanup on the node, with the version that made them; if it runs, but answers elsewhere, ignore this",
	}}, nil
}

// answerTimeout is how long a kube-proxy on the node may take to answer.
const answerTimeout = time.Second

// proxyAnswers reports whether a kube-proxy runs on the node. An agent in its place answers at the same ports, by its own name.
func (h *host) proxyAnswers(ctx context.Context) bool {
	for _, url := range h.config.Proxy {
		if body, answered := ask(ctx, url); answered {
			return body != "fairlead"
		}
	}
	return false
}

// ask returns the beginning of what a URL answers.
func ask(ctx context.Context, url string) (body string, answered bool) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", false
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", false
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 64))
	return strings.TrimSpace(string(text)), err == nil
}
