package parity

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/fairlead/fairlead/translate"
	"github.com/fairlead/fairlead/translate/kube"
	"github.com/fairlead/fairlead/translate/model"
)

// outcome is what happens to its connection, as text: forward, from the pod's or the node's address, to which endpoints, and
// for how long the client keeps the one it got; refuse; drop; or pass where the frontend is not known.
type outcome string

// outcomeOf makes an outcome of its parts.
func outcomeOf(end string, masquerade bool, affinity int, endpoints []string) outcome {
	if end != "forward" {
		return outcome(end)
	}
	source := "kept"
	if masquerade {
		source = "masqueraded"
	}
	slices.Sort(endpoints)
	return outcome(fmt.Sprintf("forward, source %s, affinity %d s, to %s", source, affinity, strings.Join(slices.Compact(endpoints), " ")))
}

// outcomes are both programs' answers. Health checks are answers too: of a Service, by family.
type outcomes struct {
	routes map[probe]outcome
	health map[string]string
}

// table returns Fairlead's forwarding table.
func (c *cluster) table() translate.Table {
	world := translate.NewWorld()
	set := func(o runtime.Object) { world.Set(kube.Reader{}.Read(o, time.Time{})) }
	for _, n := range c.Nodes {
		set(n)
	}
	for _, s := range c.Slices {
		set(s)
	}
	for _, s := range c.Services {
		set(s)
	}
	return world.Table(c.Node)
}

// fairlead answers the probes by the forwarding table.
func fairlead(c *cluster, table translate.Table, probes []probe) outcomes {
	out := outcomes{routes: map[probe]outcome{}, health: map[string]string{}}
	known := map[frontend]*model.Frontend{}
	for i := range table.Frontends {
		f := &table.Frontends[i]
		known[frontendOf(c, f)] = f
		if f.HealthCheck != nil {
			out.health[f.ServicePort.Service.String()+" "+string(f.Family)] = fmt.Sprint(*f.HealthCheck)
		}
	}
	for _, p := range probes {
		f := known[p.frontend]
		if f == nil {
			out.routes[p] = "pass"
			continue
		}
		out.routes[p] = answer(f, p)
	}
	return out
}

// frontendOf returns what a client dials to reach a frontend of the table.
func frontendOf(c *cluster, f *model.Frontend) frontend {
	known := frontend{f.Address, f.Port, strings.ToLower(string(f.Protocol)), false}
	if !f.Address.IsValid() {
		known.address, known.nodePort = c.address(corev1.IPFamily(f.Family)), true
	}
	return known
}

// answer returns what the table says of a connection.
func answer(f *model.Frontend, p probe) outcome {
	if r := f.SourceRanges; r != nil {
		source := p.source
		if p.origin == model.FromNode && slices.Contains(r.Addresses, source) {
			source = nodeAddress[familyOf(source)]
		}
		if !slices.ContainsFunc(r.Prefixes, func(p netip.Prefix) bool { return p.Contains(source) }) {
			return "drop"
		}
	}
	route, affinity := f.Routes[p.origin], 0
	if f.Direct != nil {
		affinity = int(f.Direct.Affinity.Seconds())
	}
	var endpoints []string
	for _, e := range route.Set.Endpoints {
		endpoints = append(endpoints, e.AddrPort.String())
	}
	return outcomeOf(string(route.Verdict), route.Source == model.Masquerade, affinity, endpoints)
}

// kubeProxyAnswers follows the probes through kube-proxy's rules.
func kubeProxyAnswers(c *cluster, rules map[corev1.IPFamily]*ruleset, probes []probe) (outcomes, error) {
	out := outcomes{routes: map[probe]outcome{}}
	for _, p := range probes {
		family := familyOf(p.address)
		fates, err := rules[family].follow(packet{
			source:      netip.AddrPortFrom(p.source, 40000),
			destination: netip.AddrPortFrom(p.address, p.port),
			protocol:    p.protocol,
			fromNode:    p.origin == model.FromNode,
			local:       func(a netip.Addr) bool { return a == c.address(family) },
		})
		if err != nil {
			return out, fmt.Errorf("%s from %s: %w", p.frontend, p.source, err)
		}
		out.routes[p] = summary(fates)
	}
	return out, nil
}

// healthChecks returns what kube-proxy answers to load balancers, but for Services that lost their cluster IPs to others: in
// the table a health check is part of the frontend of a cluster IP.
func healthChecks(whole, split *cluster) map[string]string {
	all := map[string]string{}
	for _, family := range families {
		for service, check := range health(whole, family) {
			has := func(s *corev1.Service) bool {
				named := s.Namespace == service.Namespace && (s.Name == service.Name || strings.HasPrefix(s.Name, service.Name+"-p"))
				a := clusterIPOf(s, family)
				return named && a.IsValid() && !placeholder(a)
			}
			if slices.ContainsFunc(split.Services, has) {
				all[service.String()+" "+string(family)] = fmt.Sprint(check)
			}
		}
	}
	return all
}

// summary returns the outcome that the possible fates of a packet make together.
func summary(fates map[fate]bool) outcome {
	groups := map[fate][]string{}
	for f := range fates {
		endpoint := f.endpoint
		f.endpoint = ""
		groups[f] = append(groups[f], endpoint)
	}
	var all []string
	for f, endpoints := range groups {
		all = append(all, string(outcomeOf(f.end, f.masquerade, f.affinity, endpoints)))
	}
	slices.Sort(all)
	return outcome(strings.Join(all, "; or "))
}

// prepared returns what kube-proxy is given: the cluster as the differences that are meant make it, and the same before a Service
// was made into several. Of the differences, without leaves one out.
func (c *cluster) prepared(without *difference) (seen, whole *cluster) {
	seen = c.copied()
	fillIn(seen)
	whole = seen
	for i := range differences {
		if d := &differences[i]; d != without && d.prepare != nil {
			if d.splits {
				whole = seen.copied()
			}
			d.prepare(seen)
		}
	}
	return seen, whole
}

// compare returns what differs between the programs, in words, and how many routes were compared. Of the
// differences that are meant, without leaves one out.
func (k *kubeProxy) compare(ctx context.Context, c *cluster, without *difference) (differs []string, n int, err error) {
	seen, whole := c.prepared(without)
	rules := map[corev1.IPFamily]*ruleset{}
	for _, family := range families {
		if rules[family], err = k.rules(ctx, seen, family); err != nil {
			return nil, 0, err
		}
	}
	table := c.table()
	probes := slices.DeleteFunc(probesOf(c, rules, table), func(p probe) bool {
		return p.port == 0 || placeholder(p.address) || placeholder(p.source)
	})
	theirs, err := kubeProxyAnswers(seen, rules, probes)
	if err != nil {
		return nil, 0, err
	}
	theirs.health = healthChecks(whole, seen)
	ours := fairlead(c, table, probes)
	for _, p := range probes {
		expected := theirs.routes[p]
		for i := range differences {
			if d := &differences[i]; d != without && d.expect != nil {
				expected = d.expect(seen, p, expected)
			}
		}
		if got := ours.routes[p]; got != expected {
			differs = append(differs, side(fmt.Sprintf("%s from %s (%s)", p.frontend, p.source, p.origin), expected, got))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(merged(theirs.health, ours.health))) {
		if theirs.health[name] != ours.health[name] {
			differs = append(differs, side("health check of "+name, outcome(theirs.health[name]), outcome(ours.health[name])))
		}
	}
	slices.Sort(differs)
	return differs, len(probes), nil
}

// side shows what both say, side by side.
func side(what string, theirs, ours outcome) string {
	return fmt.Sprintf("%s:\n    kube-proxy: %s\n    Fairlead:   %s", what, theirs, ours)
}

// merged returns the entries of two maps in one.
func merged[K comparable, V any](a, b map[K]V) map[K]V {
	m := maps.Clone(a)
	maps.Copy(m, b)
	return m
}
