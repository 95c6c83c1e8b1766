// Package translate decides what a node does with connections to Services.
//
// Objects come in as model values, one at a time, and are held by a World. Out come, for each Service, a Plan: its
// frontends as each node sees them; and for a node the forwarding table, which holds all of them. Nothing but the
// objects and the view of the node goes into a result: the package reads no clock, no environment and no files, logs
// nothing, and gives equal results for equal objects whatever the order in which they came.
package translate

import (
	"maps"
	"reflect"
	"slices"

	"github.com/fairlead/fairlead/translate/model"
)

// World is the cluster's objects as they are known now. It is not safe for concurrent use; what it returns is
// immutable and may be used by anyone. The values it is given must not be changed afterwards.
type World struct {
	services map[model.ServiceKey]*entry
	slices   map[model.ObjectKey]model.ServiceKey // The Service that each slice belongs to.
	nodes    map[string]*model.Node
	claims   registry
	changed  map[model.ServiceKey]bool
	large    map[model.ServiceKey]bool // Services that may exceed a bound.
	problems map[string][]model.Problem
	legacy   map[model.ServiceKey][]model.Problem // Of v1 Endpoints, which matter unless the Service has slices.
}

// entry is what is known of one Service. The object itself may be missing while there are slices, and the other way
// round: they come in any order.
type entry struct {
	service *model.Service
	slices  map[string]*model.EndpointSlice // By name.
	size    int                             // Endpoints in all slices.
}

// NewWorld returns a World without objects.
func NewWorld() *World {
	return &World{
		services: map[model.ServiceKey]*entry{},
		slices:   map[model.ObjectKey]model.ServiceKey{},
		nodes:    map[string]*model.Node{},
		claims:   newRegistry(),
		changed:  map[model.ServiceKey]bool{},
		large:    map[model.ServiceKey]bool{},
		problems: map[string][]model.Problem{},
		legacy:   map[model.ServiceKey][]model.Problem{},
	}
}

// Set adds an object or replaces the one with its key. An object that holds nothing to forward counts as deleted, except for
// its problems.
func (w *World) Set(o model.Object) {
	service := model.ServiceKey{Namespace: o.Key.Namespace, Name: o.Key.Name}
	if o.Key.Kind == model.KindEndpoints {
		setOrDelete(w.legacy, service, o.Problems)
		return
	}
	w.SetProblems(o.Key.String(), o.Problems)
	switch o.Key.Kind {
	case model.KindService:
		w.setService(service, o.Service)
	case model.KindEndpointSlice:
		w.setSlice(o.Key, o.Slice)
	case model.KindNode:
		if o.Node == nil {
			delete(w.nodes, o.Key.Name)
		} else {
			w.nodes[o.Key.Name] = o.Node
		}
	}
}

// Delete removes an object and its problems. An unknown key is no error.
func (w *World) Delete(k model.ObjectKey) { w.Set(model.Object{Key: k}) }

// SetProblems replaces the problems of a source of objects, such as a file that cannot be read.
func (w *World) SetProblems(source string, problems []model.Problem) {
	setOrDelete(w.problems, source, problems)
}

func setOrDelete[K comparable](all map[K][]model.Problem, key K, problems []model.Problem) {
	if len(problems) == 0 {
		delete(all, key)
	} else {
		all[key] = problems
	}
}

func (w *World) setService(key model.ServiceKey, s *model.Service) {
	e := w.entry(key)
	if same(e.service, s, func(s *model.Service) *model.ObjectVersion { return &s.Version }) {
		e.service = s // Its version is newer.
		w.release(key)
		return
	}
	w.claims.replace(e.service, s, w.touch)
	e.service = s
	w.measure(key, e)
	w.touch(key)
	w.release(key)
}

func (w *World) setSlice(key model.ObjectKey, s *model.EndpointSlice) {
	owner, known := w.slices[key]
	if known && (s == nil || s.Service != owner) {
		w.putSlice(owner, key.Name, nil)
		delete(w.slices, key)
	}
	if s != nil {
		w.slices[key] = s.Service
		w.putSlice(s.Service, key.Name, s)
	}
}

// putSlice replaces one slice of a Service; nil removes it.
func (w *World) putSlice(service model.ServiceKey, name string, s *model.EndpointSlice) {
	e := w.entry(service)
	defer w.release(service)
	old := e.slices[name]
	if same(old, s, func(s *model.EndpointSlice) *model.ObjectVersion { return &s.Version }) {
		if s != nil {
			e.slices[name] = s // Its version is newer.
		}
		return
	}
	if old != nil {
		e.size -= len(old.Endpoints)
		delete(e.slices, name)
	}
	if s != nil {
		e.size += len(s.Endpoints)
		e.slices[name] = s
	}
	w.measure(service, e)
	if e.service != nil {
		w.touch(service)
	}
}

// measure records whether a Service may exceed a bound.
func (w *World) measure(key model.ServiceKey, e *entry) {
	if mayExceed(e.service, e.size) {
		w.large[key] = true
	} else {
		delete(w.large, key)
	}
}

// same reports whether two objects mean the same, whenever they changed: a write that changes nothing that matters, such
// as a status or a label, is no change.
func same[T any](a, b *T, change func(*T) *model.ObjectVersion) bool {
	if a == nil || b == nil {
		return a == b
	}
	copied := *b
	*change(&copied) = *change(a)
	return reflect.DeepEqual(*a, copied)
}

// entry returns the entry of a Service, a new one if there is none.
func (w *World) entry(k model.ServiceKey) *entry {
	e := w.services[k]
	if e == nil {
		e = &entry{slices: map[string]*model.EndpointSlice{}}
		w.services[k] = e
	}
	return e
}

// release deletes the entry of a Service if it holds nothing.
func (w *World) release(k model.ServiceKey) {
	if e := w.services[k]; e != nil && e.service == nil && len(e.slices) == 0 {
		delete(w.services, k)
	}
}

func (w *World) touch(k model.ServiceKey) { w.changed[k] = true }

// Changed returns, in order, the Services whose plan may differ since the last call: those whose objects changed, and
// those that won or lost a frontend to them. It returns each change once.
func (w *World) Changed() []model.ServiceKey {
	changed := slices.SortedFunc(maps.Keys(w.changed), model.ServiceKey.Compare)
	clear(w.changed)
	return changed
}

// Services returns the Services that are forwarded, in order.
func (w *World) Services() []model.ServiceKey {
	all := make([]model.ServiceKey, 0, len(w.services))
	for k, e := range w.services {
		if e.service != nil {
			all = append(all, k)
		}
	}
	slices.SortFunc(all, model.ServiceKey.Compare)
	return all
}

// Slices returns the keys of the slices that belong to a Service, in order.
func (w *World) Slices(k model.ServiceKey) []model.ObjectKey {
	var all []model.ObjectKey
	if e := w.services[k]; e != nil {
		for _, name := range slices.Sorted(maps.Keys(e.slices)) {
			all = append(all, model.ObjectKey{Kind: model.KindEndpointSlice, Namespace: k.Namespace, Name: name})
		}
	}
	return all
}

// Versions returns the resource versions of a Service and of its slices, by object; of a source that has none, nothing.
func (w *World) Versions(k model.ServiceKey) map[string]string {
	all := map[string]string{}
	e := w.services[k]
	if e == nil {
		return all
	}
	add := func(v model.ObjectVersion) {
		if v.ResourceVersion != "" {
			all[v.Object] = v.ResourceVersion
		}
	}
	if e.service != nil {
		add(e.service.Version)
	}
	for _, s := range e.slices {
		add(s.Version)
	}
	return all
}

// Plan returns how a Service is forwarded, or nil if it is not: it does not exist, is not ours, or all its frontends
// belong to other Services.
func (w *World) Plan(k model.ServiceKey) *Plan {
	e := w.services[k]
	if e == nil || e.service == nil {
		return nil
	}
	granted := w.claims.granted(e.service)
	if len(granted) == 0 {
		return nil
	}
	return newPlan(e.service, sortSlices(e.slices), granted)
}

// Problems returns all present problems, in order.
func (w *World) Problems() []model.Problem {
	all := w.claims.problems()
	for _, p := range w.problems {
		all = append(all, p...)
	}
	for k, p := range w.legacy {
		if e := w.services[k]; e != nil && e.service != nil && len(e.slices) == 0 {
			all = append(all, p...)
		}
	}
	for k := range w.large {
		if plan := w.Plan(k); plan != nil {
			all = append(all, plan.problems()...)
		}
	}
	slices.SortFunc(all, model.Problem.Compare)
	return slices.Compact(all)
}

// Node returns a node by name; nil if no object describes it. It must not be changed.
func (w *World) Node(name string) *model.Node { return w.nodes[name] }

// Nodes returns the names of all nodes, in order.
func (w *World) Nodes() []string { return slices.Sorted(maps.Keys(w.nodes)) }

// View returns what may differ for a node. A node that no object describes is in no zone.
func (w *World) View(node string) model.View {
	v := model.View{Node: node}
	if n := w.nodes[node]; n != nil {
		v.Zone = n.Zone
	}
	return v
}
