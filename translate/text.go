package translate

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/fairlead/fairlead/translate/model"
)

// How many endpoints of a route and how many source ranges the text names before it counts the rest.
const (
	shown       = 6
	shownRanges = 2
)

// Text returns the table for people: grouped by Service, origins whose connections are treated alike on one line, problems below.
func (t Table) Text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "Node %s\n", t.Node)
	if len(t.Frontends) == 0 {
		b.WriteString("\nNothing is forwarded.\n")
	} else {
		b.WriteByte('\n')
		t.writeFrontends(&b)
	}
	for i, p := range t.Problems {
		if i == 0 {
			b.WriteString("\nProblems\n")
		}
		fmt.Fprintf(&b, "  %s  %s\n      %s\n", p.Reason, p.Object, p.Message)
	}
	return b.String()
}

func (t Table) writeFrontends(b *strings.Builder) {
	frontends := slices.Clone(t.Frontends)
	slices.SortStableFunc(frontends, func(a, b model.Frontend) int {
		return cmp.Or(a.ServicePort.Service.Compare(b.ServicePort.Service), cmp.Compare(kindOrder[a.Kind], kindOrder[b.Kind]))
	})
	rows := [][]string{{"SERVICE", "FRONTEND", "KIND", "FROM", "VERDICT", "SOURCE", "ENDPOINTS"}}
	for i := range frontends {
		f := &frontends[i]
		head := []string{f.ServicePort.Service.String() + ":" + f.ServicePort.Port, f.Name(), string(f.Kind)}
		for o := model.Origin(0); o < model.Origins; {
			first := o
			for o++; o < model.Origins && alike(f.Routes[o], f.Routes[first]); o++ {
			}
			r := f.Routes[first]
			rows = append(rows, append(head, originsText(first, o)+rangesText(f.SourceRanges), string(r.Verdict), cmp.Or(string(r.Source), "-"), endpointsText(r.Set)+directText(f.Direct, r)))
			head = []string{"", "", ""}
		}
	}
	writeRows(b, rows)
}

// alike reports whether two origins' connections are treated alike.
func alike(a, b model.Route) bool {
	return a.Verdict == b.Verdict && a.Source == b.Source &&
		slices.EqualFunc(a.Set.Endpoints, b.Set.Endpoints, func(a, b model.Endpoint) bool { return a.AddrPort == b.AddrPort })
}

// writeRows writes rows of equal length with their columns aligned.
func writeRows(b *strings.Builder, rows [][]string) {
	widths := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, cell := range row {
			widths[i] = max(widths[i], len(cell))
		}
	}
	for _, row := range rows {
		last := len(row) - 1
		for i, cell := range row[:last] {
			fmt.Fprintf(b, "%-*s", widths[i]+2, cell)
		}
		b.WriteString(row[last] + "\n")
	}
}

// originsText names the origins from first to before end.
func originsText(first, end model.Origin) string {
	if first == 0 && end == model.Origins {
		return "any"
	}
	var names []string
	for o := first; o < end; o++ {
		names = append(names, o.String())
	}
	return strings.Join(names, ", ")
}

// directText says how the kernel forwards a route by itself.
func directText(d *model.Direct, r model.Route) string {
	switch {
	case d == nil || r.Verdict != model.Forward:
		return ""
	case d.Affinity == 0:
		return ", direct"
	default:
		return fmt.Sprintf(", direct, a client's own for %s", d.Affinity)
	}
}

// rangesText says who of the origins may dial, by the first ranges and how many more there are.
func rangesText(r *model.SourceRanges) string {
	switch {
	case r == nil:
		return ""
	case len(r.Prefixes) == 0:
		return " in no range"
	}
	return " in " + someOf(r.Strings(), shownRanges)
}

// endpointsText names a set's first endpoints and counts the rest.
func endpointsText(set *model.EndpointSet) string {
	if len(set.Endpoints) == 0 {
		return "-"
	}
	names := make([]string, len(set.Endpoints))
	for i, e := range set.Endpoints {
		names[i] = e.AddrPort.String()
	}
	return someOf(names, shown)
}

// someOf returns the first n names and counts the rest.
func someOf(names []string, n int) string {
	text := strings.Join(names[:min(n, len(names))], " ")
	if rest := len(names) - n; rest > 0 {
		text += fmt.Sprintf(" and %d more", rest)
	}
	return text
}
