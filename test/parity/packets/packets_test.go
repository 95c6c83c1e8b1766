package packets

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// TestPackets tries every cell in both worlds, and the cells in which they differ again, harder.
func TestPackets(t *testing.T) {
	started := time.Now()
	all := sample(t, allServices())
	w := startWorlds(t)
	if err := w.apply(t.Context(), all); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d Services are forwarded after %s", len(all), time.Since(started).Round(time.Second))
	cells := cellsOf(all)
	theirs, ours := w.try(t, cells, quick)
	again := slices.DeleteFunc(slices.Clone(cells), func(c cell) bool {
		return theirs.outcome(c, all) == ours.outcome(c, all) || explain(c, theirs.outcome(c, all), ours.outcome(c, all)) != nil
	})
	t.Logf("%d cells tried after %s; %d differ and are tried again", len(cells), time.Since(started).Round(time.Second), len(again))
	theirsAgain, oursAgain := w.try(t, again, thorough)
	maps.Copy(theirs, theirsAgain)
	maps.Copy(ours, oursAgain)
	if err := w.ended(); err != nil {
		t.Error(err)
	}

	m := &compared{}
	for _, c := range cells {
		m.add(c, theirs.outcome(c, all), ours.outcome(c, all))
	}
	m.judge(t)
	if *matrix != "" && len(all) == len(allServices()) && !t.Failed() {
		if err := os.WriteFile(*matrix, []byte(m.page(w.conditions(time.Since(started)))), 0o644); err != nil {
			t.Error(err)
		}
	}
	t.Logf("%s, after %s", m.summary(), time.Since(started).Round(time.Second))
}

// sample returns the Services to try.
func sample(t *testing.T, all []*service) []*service {
	t.Helper()
	if *most <= 0 || *most >= len(all) {
		return all
	}
	if *seed == 0 {
		*seed = rand.Uint64()
	}
	t.Logf("-services %d -seed %d", *most, *seed)
	chosen := map[*service]bool{}
	for _, i := range rand.New(rand.NewPCG(*seed, 0)).Perm(len(all))[:*most] {
		chosen[all[i]] = true
		chosen[all[i].withoutAffinity(all)] = true // What it is compared with.
	}
	return slices.DeleteFunc(slices.Clone(all), func(s *service) bool { return !chosen[s] })
}

// cellsOf returns the ways to Services.
func cellsOf(all []*service) []cell {
	var cells []cell
	for _, s := range all {
		for _, family := range families {
			for _, from := range origins {
				for _, k := range s.kinds() {
					cells = append(cells, cell{s, k, from, family})
				}
			}
		}
	}
	return cells
}

// try tries cells in both worlds at once.
func (w *worlds) try(t *testing.T, cells []cell, e effort) (theirs, ours results) {
	done := make(chan results)
	go func() { done <- w.kubeProxy.tryAll(t.Context(), cells, e) }()
	ours = w.fairlead.tryAll(t.Context(), cells, e)
	return <-done, ours
}

const alwaysTheSame = ", always the same"

// outcome returns what happened in a cell, in words. With affinity a client has to stay with one endpoint. Which one is of no
// matter, as long as it is one that the same Service without affinity has for the client too: then it is all of those.
func (r results) outcome(c cell, all []*service) string {
	a := r[c]
	if !c.service.variant.affinity || c.kind == healthCheck || len(a) != 1 {
		return a.String()
	}
	twin := c
	twin.service = c.service.withoutAffinity(all)
	free := r[twin]
	for one := range a {
		if len(free) > 1 && free[one] {
			return free.String() + alwaysTheSame
		}
	}
	return a.String()
}

func TestAffinityIsComparedByItsTwin(t *testing.T) {
	all := allServices()
	var sticky cell
	for _, c := range cellsOf(all) {
		if c.service.variant.affinity && c.kind == clusterIP {
			sticky = c
			break
		}
	}
	free := sticky
	free.service = sticky.service.withoutAffinity(all)
	local, remote, other := answer{"local", "client"}, answer{"remote", "client"}, answer{"remote", "node"}
	for _, tc := range []struct {
		sticky, free answers
		want         string
	}{
		{answers{local: true}, answers{local: true, remote: true}, "local and remote see the client, always the same"},
		{answers{remote: true}, answers{local: true, remote: true}, "local and remote see the client, always the same"},
		{answers{other: true}, answers{local: true, remote: true}, "remote sees the node"},
		{answers{local: true, remote: true}, answers{local: true, remote: true}, "local and remote see the client"},
		{answers{local: true}, answers{local: true}, "local sees the client"},
		{answers{{by: dropped}: true}, answers{local: true, remote: true}, "dropped"},
		{answers{local: true, {by: refused}: true}, answers{local: true}, "refused; local sees the client"},
	} {
		r := results{sticky: tc.sticky, free: tc.free}
		if got := r.outcome(sticky, all); got != tc.want {
			t.Errorf("%v beside %v: got %q, want %q", tc.sticky, tc.free, got, tc.want)
		}
	}
}

// Names and addresses are such as the API server takes, and no two Services share one.
func TestServicesAreApart(t *testing.T) {
	label := regexp.MustCompile(`^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$`)
	taken := map[string]string{}
	for _, s := range allServices() {
		if !label.MatchString(s.name()) {
			t.Errorf("%q is no DNS label, of which a Service's name has to be one", s.name())
		}
		all := []string{s.name(), fmt.Sprint(s.target(nodePort, "", s.address(clusterIP, corev1.IPv4Protocol)).Port())}
		all = append(all, fmt.Sprint(s.target(healthCheck, "", s.address(clusterIP, corev1.IPv4Protocol)).Port()))
		for _, family := range families {
			for _, k := range []kind{clusterIP, loadBalancer, externalIP} {
				a := s.address(k, family)
				all = append(all, a.String())
				if !slices.ContainsFunc(servicePrefixes, func(p netip.Prefix) bool { return p.Contains(a) }) {
					t.Errorf("%s of %s is in none of the prefixes that lead to the cluster", a, s.name())
				}
			}
		}
		for _, what := range all {
			if other, is := taken[what]; is {
				t.Errorf("%s is of %s and of %s", what, other, strings.TrimSpace(s.name()))
			}
			taken[what] = s.name()
		}
	}
}
