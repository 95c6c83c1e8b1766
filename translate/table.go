package translate

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/fairlead/fairlead/translate/model"
)

// Table is the forwarding table of one node: all that it does with connections to Services.
type Table struct {
	Node      string
	Frontends []model.Frontend // In order of address (NodePorts last), port, protocol and family.
	Problems  []model.Problem  // In order.
}

// Table returns a node's forwarding table. For a node that no object describes it is the table of a node in no zone and
// without endpoints, with a Problem that says so.
func (w *World) Table(node string) Table {
	t := Table{Node: node, Problems: w.Problems()}
	view := w.View(node)
	for _, key := range w.Services() {
		if plan := w.Plan(key); plan != nil {
			t.Frontends = append(t.Frontends, plan.Frontends(plan.Variant(view))...)
		}
	}
	slices.SortFunc(t.Frontends, func(a, b model.Frontend) int { return claimOf(&a).compare(claimOf(&b)) })
	if w.nodes[node] == nil {
		t.Problems = append(t.Problems, model.Problem{
			Object:  model.ObjectKey{Kind: model.KindNode, Name: node}.String(),
			Reason:  model.UnknownNode,
			Message: "no Node object has this name: its zone is not known, so zone hints do not hold; check the name, or add the object",
		})
		slices.SortFunc(t.Problems, model.Problem.Compare)
	}
	return t
}

// claimOf returns what a frontend claims, by which frontends are ordered.
func claimOf(f *model.Frontend) claim { return claim{f.Address, f.Family, f.Port, f.Protocol} }

// The public shape of the table in JSON. The fields' order is part of it.
type (
	frontendJSON struct {
		Address     string     `json:"address"` // "*" for a NodePort.
		Port        uint16     `json:"port"`
		Protocol    string     `json:"protocol"`
		Kind        string     `json:"kind"`
		Service     string     `json:"service"`
		ServicePort string     `json:"servicePort"` // The port's name, or its number.
		Routes      routesJSON `json:"routes"`
		// "direct" where the kernel forwards by itself, and for how many seconds a client keeps its endpoint.
		Forwarding      string `json:"forwarding,omitempty"`
		AffinitySeconds int    `json:"affinitySeconds,omitempty"`
		// Who may dial it at all: absent, everyone; empty, nobody.
		SourceRanges *[]string `json:"sourceRanges,omitempty"`
		// What the node answers at healthCheckNodePort; with a ClusterIP.
		HealthCheck *model.HealthCheck `json:"healthCheck,omitempty"`
	}
	routesJSON struct {
		Pod     routeJSON `json:"pod"`
		Node    routeJSON `json:"node"`
		Outside routeJSON `json:"outside"`
	}
	routeJSON struct {
		Verdict   string   `json:"verdict"`
		Source    string   `json:"source,omitempty"` // Only with forward.
		Endpoints []string `json:"endpoints"`        // Never null.
	}
)

// JSON returns the table in its public shape, one frontend or problem to a line, with a newline at the end. Equal
// tables are equal bytes.
func (t Table) JSON() ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false) // For people's eyes, not for a browser's.
	put := func(before string, value any) error {
		b.WriteString(before)
		if err := enc.Encode(value); err != nil {
			return fmt.Errorf("forwarding table of node %q: %w", t.Node, err)
		}
		b.Truncate(b.Len() - 1) // Encode ends each value with a newline.
		return nil
	}
	if err := put(`{"node":`, t.Node); err != nil {
		return nil, err
	}
	b.WriteString(`,"frontends":[`)
	for i := range t.Frontends {
		if err := put(separator(i), frontendToJSON(&t.Frontends[i])); err != nil {
			return nil, err
		}
	}
	b.WriteString("],\n \"problems\":[")
	for i, p := range t.Problems {
		if err := put(separator(i), p); err != nil {
			return nil, err
		}
	}
	b.WriteString("]}\n")
	return b.Bytes(), nil
}

// separator comes before element i of a list.
func separator(i int) string {
	if i == 0 {
		return "\n  "
	}
	return ",\n  "
}

func frontendToJSON(f *model.Frontend) frontendJSON {
	address := "*"
	if f.Address.IsValid() {
		address = f.Address.String()
	}
	var ranges *[]string
	if f.SourceRanges != nil {
		ranges = new(f.SourceRanges.Strings())
	}
	forwarding, affinity := "", 0
	if f.Direct != nil {
		forwarding, affinity = "direct", int(f.Direct.Affinity.Seconds())
	}
	return frontendJSON{
		Address:     address,
		Port:        f.Port,
		Protocol:    string(f.Protocol),
		Kind:        string(f.Kind),
		Service:     f.ServicePort.Service.String(),
		ServicePort: f.ServicePort.Port,
		Routes: routesJSON{
			Pod:     routeToJSON(f.Routes[model.FromPod]),
			Node:    routeToJSON(f.Routes[model.FromNode]),
			Outside: routeToJSON(f.Routes[model.FromOutside]),
		},
		Forwarding: forwarding, AffinitySeconds: affinity,
		SourceRanges: ranges,
		HealthCheck:  f.HealthCheck,
	}
}

func routeToJSON(r model.Route) routeJSON {
	endpoints := make([]string, len(r.Set.Endpoints))
	for i, e := range r.Set.Endpoints {
		endpoints[i] = e.AddrPort.String()
	}
	return routeJSON{Verdict: string(r.Verdict), Source: string(r.Source), Endpoints: endpoints}
}
