// Package explain answers why an endpoint of a Service does or does not get traffic on a node, and what happens to
// connections there.
//
// The cluster's objects come in as package translate holds them, a report goes out, for programs and for people. It calls
// the code that decides; it decides nothing itself.
package explain

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/fairlead/fairlead/translate"
	"github.com/fairlead/fairlead/translate/model"
)

// Report is the answer for one Service.
type Report struct {
	Service  string          `json:"service"`
	Views    []View          `json:"views"`    // What nodes see; those that see the same share one.
	Problems []model.Problem `json:"problems"` // Of the Service and its slices.
}

// View is what some nodes see.
type View struct {
	Nodes     []string   `json:"nodes"`
	Frontends []Frontend `json:"frontends"`
	Ports     []Port     `json:"ports"`
}

// Frontend is an address of the Service, and what happens to connections to it.
type Frontend struct {
	Name   string           `json:"name"`
	Kind   model.Kind       `json:"kind"`
	Routes map[string]Route `json:"routes"` // By the origin's name.

	SourceRanges *[]string `json:"sourceRanges,omitempty"` // Who may dial it at all: absent, everyone; empty, nobody.
}

// Route is what happens to a connection.
type Route struct {
	Verdict   model.Verdict `json:"verdict"`
	Source    model.Source  `json:"source,omitempty"`
	Policy    string        `json:"policy"` // Whose endpoints it goes to: Cluster or Local.
	Endpoints []string      `json:"endpoints"`
	Why       string        `json:"why,omitempty"` // It is refused, in words.
}

// Port is a port of the Service in one family, with every endpoint that any slice has for it.
type Port struct {
	ServicePort string       `json:"servicePort"`
	Family      model.Family `json:"family"`
	Hints       string       `json:"hints,omitempty"` // What topology hints do, in words.
	Endpoints   []Endpoint   `json:"endpoints"`
}

// Endpoint is an endpoint, used or not.
type Endpoint struct {
	Address string        `json:"address"` // Without a port if its slice has not the Service's.
	Slice   string        `json:"slice"`
	Target  string        `json:"target,omitempty"` // The pod, as a rule.
	Node    string        `json:"node,omitempty"`
	Zone    string        `json:"zone,omitempty"`
	Cluster translate.Use `json:"cluster"` // Whether connections under the policy Cluster use it, and why not.
	Local   translate.Use `json:"local"`   // The same under the policy Local.

	SlicePorts []string `json:"slicePorts,omitempty"` // What its slice has if it has not the Service's port.
}

// ErrNoService is the error about a Service that the World does not hold.
var ErrNoService = errors.New("no Service")

// New explains a Service for some nodes; none means all that have a Node object, or, without any such, a node of which
// nothing is known.
func New(w *translate.World, key model.ServiceKey, nodes []string) (Report, error) {
	plan := w.Plan(key)
	if plan == nil {
		return Report{}, notForwarded(w, key)
	}
	for _, n := range nodes {
		if w.Node(n) == nil {
			return Report{}, fmt.Errorf("no node %q; %s", n, known(w.Nodes()))
		}
	}
	if len(nodes) == 0 {
		nodes = w.Nodes()
	}
	r := Report{Service: key.String(), Problems: problemsOf(w, key)}
	if len(nodes) == 0 {
		view := viewOf(w, plan, key, model.View{})
		view.Nodes = []string{}
		r.Views = []View{view}
	}
	index := map[string]int{}
	for _, n := range nodes {
		view := viewOf(w, plan, key, w.View(n))
		text, err := json.Marshal(view)
		if err != nil {
			return Report{}, fmt.Errorf("explain Service %s: %w", key, err)
		}
		id := string(text)
		i, ok := index[id]
		if !ok {
			i = len(r.Views)
			index[id] = i
			r.Views = append(r.Views, view)
		}
		r.Views[i].Nodes = append(r.Views[i].Nodes, n)
	}
	return r, nil
}

// notForwarded says why a Service has no frontends.
func notForwarded(w *translate.World, key model.ServiceKey) error {
	problems := problemsOf(w, key)
	service := serviceObject(key)
	if !slices.ContainsFunc(problems, func(p model.Problem) bool { return p.Object == service }) {
		return fmt.Errorf("%w %s is forwarded: it does not exist, or it is headless, an ExternalName, or for another proxy", ErrNoService, key)
	}
	var all []string
	for _, p := range problems {
		text := fmt.Sprintf("%s: %s", p.Reason, p.Message)
		if p.Object != service {
			text = p.Object + ": " + text
		}
		all = append(all, text)
	}
	return fmt.Errorf("the Service %s is not forwarded: %s", key, strings.Join(all, "; "))
}

// known lists the nodes that can be explained.
func known(nodes []string) string {
	if len(nodes) == 0 {
		return "no Node object is known; add those of the cluster, or ask without a node"
	}
	return "there are " + listNodes(nodes)
}

// viewOf returns what one view sees.
func viewOf(w *translate.World, plan *translate.Plan, key model.ServiceKey, v model.View) View {
	var out View
	local := false
	ports := w.Explain(key, v)
	for _, f := range plan.Frontends(plan.Variant(v)) {
		front := Frontend{Name: f.Name(), Kind: f.Kind, Routes: map[string]Route{}}
		if f.SourceRanges != nil {
			front.SourceRanges = new(f.SourceRanges.Strings())
		}
		for origin, r := range f.Routes {
			route := Route{Verdict: r.Verdict, Source: r.Source, Policy: "Cluster", Endpoints: []string{}}
			if strings.HasSuffix(r.Set.Name, "/local") {
				route.Policy, local = "Local", true
			}
			for _, e := range r.Set.Endpoints {
				route.Endpoints = append(route.Endpoints, e.AddrPort.String())
			}
			if r.Verdict == model.Refuse {
				route.Why = refusal(ports, &f)
			}
			front.Routes[model.Origin(origin).String()] = route
		}
		out.Frontends = append(out.Frontends, front)
	}
	for _, x := range ports {
		out.Ports = append(out.Ports, portOf(x, local))
	}
	return out
}

// portOf returns one port's endpoints. Without a policy Local what is local does not matter, and nodes that differ in nothing
// else have the same view.
func portOf(x translate.Explanation, local bool) Port {
	p := Port{ServicePort: x.ServicePort.String(), Family: x.Family, Hints: hints(x), Endpoints: []Endpoint{}}
	for _, e := range x.Endpoints {
		out := Endpoint{
			Address: e.Endpoint.AddrPort.String(), Slice: e.Slice, Target: e.Endpoint.Target, Node: e.Endpoint.Node, Zone: e.Endpoint.Zone,
			Cluster: e.Cluster,
		}
		if local {
			out.Local = e.Local
		}
		if e.Cluster == translate.NoSuchPort {
			out.Address, out.SlicePorts = e.Endpoint.Address.String(), []string{}
			for _, p := range e.SlicePorts {
				out.SlicePorts = append(out.SlicePorts, portName(p.Name, p.Protocol))
			}
		}
		p.Endpoints = append(p.Endpoints, out)
	}
	return p
}

// hints says in words what topology hints do.
func hints(x translate.Explanation) string {
	switch {
	case x.Hints == translate.HintsForNode:
		return "endpoints hinted to this node are used"
	case x.Hints == translate.HintsForZone:
		return "endpoints hinted to this zone are used"
	case x.NodeHintsSwitchedOff != netip.AddrPort{}:
		return fmt.Sprintf("hints for nodes are switched off by %s, which is ready and has none", x.NodeHintsSwitchedOff)
	case x.ZoneHintsSwitchedOff != netip.AddrPort{}:
		return fmt.Sprintf("hints for zones are switched off by %s, which is ready and has none", x.ZoneHintsSwitchedOff)
	default:
		return ""
	}
}

// serviceObject returns a Service's name as problems have it.
func serviceObject(key model.ServiceKey) string {
	return model.ObjectKey{Kind: model.KindService, Namespace: key.Namespace, Name: key.Name}.String()
}

// problemsOf returns the problems of a Service, of its slices, and of its Endpoints.
func problemsOf(w *translate.World, key model.ServiceKey) []model.Problem {
	endpoints := model.ObjectKey{Kind: model.KindEndpoints, Namespace: key.Namespace, Name: key.Name}
	objects := []string{serviceObject(key), endpoints.String()}
	for _, slice := range w.Slices(key) {
		objects = append(objects, slice.String())
	}
	problems := []model.Problem{}
	for _, p := range w.Problems() {
		if slices.Contains(objects, p.Object) {
			problems = append(problems, p)
		}
	}
	return problems
}
