package packets

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// compared is what became of all cells.
type compared struct {
	cells   []cell
	equal   map[cell]string // The outcome in both worlds.
	differs []differing
}

// differing is a cell with two outcomes.
type differing struct {
	cell
	theirs, ours string
	reason       *difference // Nil: nobody knows.
}

func (m *compared) add(c cell, theirs, ours string) {
	m.cells = append(m.cells, c)
	if theirs == ours {
		if m.equal == nil {
			m.equal = map[cell]string{}
		}
		m.equal[c] = ours
		return
	}
	m.differs = append(m.differs, differing{c, theirs, ours, explain(c, theirs, ours)})
}

// judge fails the test for each difference without a reason, and for what must have happened often and never did.
func (m *compared) judge(t *testing.T) {
	t.Helper()
	for _, d := range m.differs {
		if d.reason == nil {
			t.Errorf("%s\n    kube-proxy: %s\n    Fairlead:   %s", d.cell, d.theirs, d.ours)
		}
	}
	ends := map[corev1.Protocol]map[string]bool{}
	for c, outcome := range m.equal {
		if ends[c.service.variant.protocol] == nil {
			ends[c.service.variant.protocol] = map[string]bool{}
		}
		ends[c.service.variant.protocol][endOf(c, outcome)] = true
	}
	for protocol, seen := range ends {
		if len(m.cells) > len(cellsOf(allServices()))/2 && (!seen["answered"] || !seen[refused] || !seen[dropped]) {
			t.Errorf("%s: of answered, refused and dropped there was only %v", protocol, slices.Sorted(maps.Keys(seen)))
		}
	}
}

// endOf returns in a word how a cell ended.
func endOf(c cell, outcome string) string {
	switch {
	case c.kind == healthCheck:
		return "asked"
	case outcome == refused, outcome == dropped, outcome == barred:
		return outcome
	default:
		return "answered"
	}
}

func (m *compared) summary() string {
	unexplained := 0
	for _, d := range m.differs {
		if d.reason == nil {
			unexplained++
		}
	}
	return fmt.Sprintf("%d cells: %d are equal, %d differ for a known reason, %d for none",
		len(m.cells), len(m.equal), len(m.differs)-unexplained, unexplained)
}

const pageHead = `# Every way to a Service, with packets, beside kube-proxy

kube-proxy in nftables mode and Fairlead forward the same Services of the same API server, each on two nodes of its own, with the same names,
pods and addresses. "make parity" dials each Service in every way and writes this page; [translate](../../translate/README.md) has the reasons.
Local endpoints are those on the node that is looked at, whose NodePorts are dialled; the other node's clients dial the other frontends by
their own node.

`

const pageEqual = `
## What is equal

The policy is the one that binds the frontend: internalTrafficPolicy for the ClusterIP, else externalTrafficPolicy. Each field sums up the other
policy, both families and all ways of forwarding, with the number of cells; with affinity one and the same of the named endpoints answers.
`

// page returns the matrix for people. The conditions say when and where it was tried.
func (m *compared) page(conditions string) string {
	var b strings.Builder
	fmt.Fprint(&b, pageHead, conditions, "\n\n**", m.summary(), ".**\n\n## Totals\n\nCells, and how many of them differ.\n\n")
	m.totals(&b)
	fmt.Fprint(&b, "\n## What differs\n\n")
	m.differing(&b)
	b.WriteString(pageEqual)
	for _, k := range kinds {
		m.equals(&b, k)
	}
	return b.String()
}

// totals writes a table by frontend and by way of forwarding.
func (m *compared) totals(b *strings.Builder) {
	count, differs := map[kind]map[variant]int{}, map[kind]map[variant]int{}
	for _, k := range kinds {
		count[k], differs[k] = map[variant]int{}, map[variant]int{}
	}
	for _, c := range m.cells {
		count[c.kind][c.service.variant]++
	}
	for _, d := range m.differs {
		differs[d.kind][d.service.variant]++
	}
	head(b, append([]string{"frontend"}, texts(variants)...))
	for _, k := range kinds {
		row := []string{string(k)}
		for _, v := range variants {
			row = append(row, fmt.Sprintf("%d, %d", count[k][v], differs[k][v]))
		}
		line(b, row)
	}
}

// differing writes every cell that differs; those that differ alike stand in one line.
func (m *compared) differing(b *strings.Builder) {
	if len(m.differs) == 0 {
		fmt.Fprintln(b, "Nothing.")
		return
	}
	groups := map[differing][]cell{}
	for _, d := range m.differs {
		key := d
		key.cell = cell{kind: d.kind, from: d.from}
		if d.reason != nil && d.reason.byChance != "" {
			key.theirs = d.reason.byChance
		}
		groups[key] = append(groups[key], d.cell)
	}
	var rows [][]string
	for key, cells := range groups {
		for _, g := range folded(cells, dimensions) {
			reason := "unknown"
			if key.reason != nil {
				reason = key.reason.row
			}
			row := []string{reason, string(key.kind), string(key.from)}
			for _, d := range dimensions {
				row = append(row, strings.Join(valuesOf(g, d), ", "))
			}
			rows = append(rows, append(row, key.theirs, key.ours, fmt.Sprint(len(g))))
		}
	}
	slices.SortFunc(rows, slices.Compare)
	head(b, []string{
		"the row in translate/README.md", "frontend", "from", "endpoints", "forwarding", "external", "internal", "family", "kube-proxy", "Fairlead", "cells",
	})
	for _, row := range rows {
		line(b, row)
	}
}

// dimensions are what cells differ in beside frontend and origin.
var dimensions = []func(cell) string{
	func(c cell) string { return c.service.state.name },
	func(c cell) string { return c.service.variant.String() },
	func(c cell) string { return string(c.service.external) },
	func(c cell) string { return string(c.service.internal) },
	func(c cell) string { return string(c.family) },
}

// folded splits cells into groups that hold each combination of their values, by one dimension after the other.
func folded(cells []cell, by []func(cell) string) [][]cell {
	product := 1
	for _, d := range dimensions {
		product *= len(valuesOf(cells, d))
	}
	if product == len(cells) || len(by) == 0 {
		return [][]cell{cells}
	}
	var all [][]cell
	for _, value := range valuesOf(cells, by[0]) {
		part := slices.DeleteFunc(slices.Clone(cells), func(c cell) bool { return by[0](c) != value })
		all = append(all, folded(part, by[1:])...)
	}
	return all
}

func valuesOf(cells []cell, d func(cell) string) []string {
	values := map[string]bool{}
	for _, c := range cells {
		values[d(c)] = true
	}
	return slices.Sorted(maps.Keys(values))
}

// equals writes the table of one kind of frontend: what was the same in both worlds.
func (m *compared) equals(b *strings.Builder, k kind) {
	type group struct{ policy, state string }
	ends := map[group]map[origin]map[string]int{}
	for c, outcome := range m.equal {
		if c.kind != k {
			continue
		}
		g := group{string(c.service.external), c.service.state.name}
		if k == clusterIP {
			g.policy = string(c.service.internal)
		}
		if ends[g] == nil {
			ends[g] = map[origin]map[string]int{}
		}
		if ends[g][c.from] == nil {
			ends[g][c.from] = map[string]int{}
		}
		outcome = strings.TrimSuffix(outcome, alwaysTheSame)
		ends[g][c.from][strings.ReplaceAll(outcome, c.service.name(), "NAME")]++
	}
	fmt.Fprintf(b, "\n### %s\n\n", k)
	head(b, append([]string{"policy", "endpoints"}, texts(origins)...))
	for _, policy := range []string{"Cluster", "Local"} {
		for _, s := range states {
			row := []string{policy, s.name}
			for _, from := range origins {
				row = append(row, sum(ends[group{policy, s.name}][from]))
			}
			if strings.Join(row[2:], "") != "" {
				line(b, row)
			}
		}
	}
}

// sum writes ends with their numbers, the most frequent first.
func sum(ends map[string]int) string {
	names := slices.SortedFunc(maps.Keys(ends), func(a, b string) int { return cmp.Or(ends[b]-ends[a], strings.Compare(a, b)) })
	var parts []string
	for _, name := range names {
		part := fmt.Sprintf("%s (%d)", name, ends[name])
		parts = append(parts, part)
	}
	return strings.Join(parts, "; or ")
}

func texts[T any](values []T) []string {
	var all []string
	for _, v := range values {
		all = append(all, fmt.Sprint(v))
	}
	return all
}

func head(b *strings.Builder, columns []string) {
	line(b, columns)
	b.WriteString(strings.Repeat("|---", len(columns)) + "|\n")
}

func line(b *strings.Builder, columns []string) {
	b.WriteString("| " + strings.Join(columns, " | ") + " |\n")
}
