package explain

import (
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/fairlead/fairlead/translate"
	"github.com/fairlead/fairlead/translate/model"
)

// Text returns the report for people, about connections from one origin, or from all if from is empty.
func (r Report) Text(from string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Service %s\n", r.Service)
	for _, v := range r.Views {
		fmt.Fprintf(&b, "\nOn %s:\n\n", viewers(v.Nodes))
		v.frontends(&b, from)
		for _, p := range v.Ports {
			p.print(&b)
		}
	}
	if len(r.Problems) > 0 {
		b.WriteString("\nProblems:\n")
		for _, p := range r.Problems {
			fmt.Fprintf(&b, "  %s: %s: %s\n", p.Object, p.Reason, p.Message)
		}
	}
	return b.String()
}

// viewers names the nodes that have a view.
func viewers(nodes []string) string {
	if len(nodes) == 0 {
		return "any node (no Node object is known, so neither are their zones)"
	}
	return listNodes(nodes)
}

// listNodes lists nodes, and counts them where a list would be long.
func listNodes(names []string) string {
	if len(names) > 8 {
		return fmt.Sprintf("%s and %d more nodes", strings.Join(names[:8], ", "), len(names)-8)
	}
	return strings.Join(names, ", ")
}

// frontends prints what happens to connections. Origins that are treated alike share a line.
func (v View) frontends(b *strings.Builder, from string) {
	t := tabwriter.NewWriter(b, 0, 0, 3, ' ', 0)
	fmt.Fprintln(t, "  FRONTEND\tKIND\tFROM\tA CONNECTION MEETS")
	for _, f := range v.Frontends {
		var meets []string
		origins := map[string][]string{}
		for o := model.Origin(0); o < model.Origins; o++ {
			if from != "" && o.String() != from {
				continue
			}
			m := f.Routes[o.String()].String()
			if !slices.Contains(meets, m) {
				meets = append(meets, m)
			}
			origins[m] = append(origins[m], o.String())
		}
		for _, m := range meets {
			fmt.Fprintf(t, "  %s\t%s\t%s\t%s\n", f.Name, f.Kind, strings.Join(origins[m], ", "), m)
		}
		if f.SourceRanges != nil {
			fmt.Fprintf(t, "  %s\t%s\tany\t%s\n", f.Name, f.Kind, outOfRange(*f.SourceRanges))
		}
	}
	t.Flush()
}

// outOfRange says which connections are dropped for their source.
func outOfRange(ranges []string) string {
	if len(ranges) == 0 {
		return "dropped, from wherever it comes: no range of spec.loadBalancerSourceRanges can be read"
	}
	return fmt.Sprintf("dropped, unless it comes from %s, as spec.loadBalancerSourceRanges asks", strings.Join(ranges, " or "))
}

// String says what happens to a connection.
func (r Route) String() string {
	switch {
	case r.Verdict == model.Refuse:
		return "refused at once: " + r.Why
	case r.Verdict == model.Drop:
		return "dropped: endpoints are ready on other nodes only, and the traffic policy is Local"
	case r.Source == model.Masquerade:
		return fmt.Sprintf("%s; they see the node", count(r))
	default:
		return fmt.Sprintf("%s; they see the client", count(r))
	}
}

// count says which endpoints a connection may go to.
func count(r Route) string {
	where := ""
	if r.Policy == "Local" {
		where = " on this node"
	}
	if len(r.Endpoints) == 1 {
		return "endpoint " + r.Endpoints[0] + where
	}
	return fmt.Sprintf("one of %d endpoints%s", len(r.Endpoints), where)
}

// print prints a port's endpoints.
func (p Port) print(b *strings.Builder) {
	fmt.Fprintf(b, "\n  Endpoints of %s, %s", p.ServicePort, p.Family)
	if len(p.Endpoints) == 0 {
		b.WriteString(": no slice has any\n")
		return
	}
	b.WriteString("\n")
	if p.Hints != "" {
		fmt.Fprintf(b, "  (%s)\n", p.Hints)
	}
	local := slices.ContainsFunc(p.Endpoints, func(e Endpoint) bool { return e.Local != "" })
	t := tabwriter.NewWriter(b, 0, 0, 3, ' ', 0)
	head := "  ENDPOINT\tUSED\tSLICE\tTARGET\tNODE\tZONE"
	if local {
		head = "  ENDPOINT\tPOLICY CLUSTER\tPOLICY LOCAL\tSLICE\tTARGET\tNODE\tZONE"
	}
	fmt.Fprintln(t, head)
	for _, e := range p.Endpoints {
		use := e.why(e.Cluster)
		if local {
			use += "\t" + e.why(e.Local)
		}
		fmt.Fprintf(t, "  %s\t%s\t%s\t%s\t%s\t%s\n", e.Address, use, e.Slice, dash(e.Target), dash(e.Node), dash(e.Zone))
	}
	t.Flush()
}

// why says whether an endpoint is used and, if not, why.
func (e Endpoint) why(u translate.Use) string {
	switch {
	case u == translate.Used:
		return "yes"
	case u == translate.NoSuchPort && len(e.SlicePorts) > 0:
		return fmt.Sprintf("no: %s, but %s", u, strings.Join(e.SlicePorts, ", "))
	default:
		return "no: " + string(u)
	}
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
