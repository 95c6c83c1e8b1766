package scenarios

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/fairlead/fairlead/server/source"
	"github.com/fairlead/fairlead/translate"
	"github.com/fairlead/fairlead/translate/kube"
	"github.com/fairlead/fairlead/translate/model"
)

// order is an order in which objects come.
type order struct {
	name    string
	arrange func([]model.ObjectKey)
}

// orders are the orders in which every scenario runs.
var orders = []order{
	{"as-written", func([]model.ObjectKey) {}},
	{"service-first", func(k []model.ObjectKey) { byKind(k, model.KindService, model.KindEndpointSlice, model.KindNode) }},
	{"slice-first", func(k []model.ObjectKey) { byKind(k, model.KindEndpointSlice, model.KindNode, model.KindService) }},
	{"node-first", func(k []model.ObjectKey) { byKind(k, model.KindNode, model.KindService, model.KindEndpointSlice) }},
	{"backwards", slices.Reverse[[]model.ObjectKey]},
	{"shuffled-1", shuffle(1)},
	{"shuffled-2", shuffle(2)},
}

func byKind(k []model.ObjectKey, kinds ...model.ObjectKind) {
	slices.SortStableFunc(k, func(a, b model.ObjectKey) int { return slices.Index(kinds, a.Kind) - slices.Index(kinds, b.Kind) })
}

func shuffle(seed uint64) func([]model.ObjectKey) {
	return func(k []model.ObjectKey) {
		rand.New(rand.NewPCG(seed, seed)).Shuffle(len(k), func(i, j int) { k[i], k[j] = k[j], k[i] })
	}
}

// cluster is the objects of a scenario as they are now, and a World that was told of every change.
type cluster struct {
	t        *testing.T
	order    order
	reader   kube.Reader
	world    *translate.World
	objects  map[model.ObjectKey]runtime.Object
	problems map[string][]model.Problem // Of manifests, by file.

	reported map[string]bool                            // As changed, since the last changed line.
	seen     map[model.ServiceKey]map[model.View]string // What views saw of each Service after the last change.
	big      bool                                       // There are more endpoints than can be looked at all the time.
	nodes    map[string]bool                            // All that there are or were.
	zones    map[string]bool                            // The same.
}

func newCluster(t *testing.T, o order) *cluster {
	return &cluster{
		t:        t,
		order:    o,
		world:    translate.NewWorld(),
		objects:  map[model.ObjectKey]runtime.Object{},
		problems: map[string][]model.Problem{},
		reported: map[string]bool{},
		seen:     map[model.ServiceKey]map[model.View]string{},
		nodes:    map[string]bool{"": true, "elsewhere": true},
		zones:    map[string]bool{"": true, "elsewhere": true},
	}
}

// apply adds or changes the objects of a file.
func (c *cluster) apply(name string, manifests []byte) {
	c.t.Helper()
	read, err := source.ReadManifests([]string{source.Stdin}, strings.NewReader(string(manifests)))
	if err != nil {
		c.t.Fatal(err)
	}
	c.problems[name] = read.Problems
	c.world.SetProblems(name, read.Problems)
	c.set(read.Objects)
}

// set adds or changes objects, one at a time.
func (c *cluster) set(objects []runtime.Object) {
	c.t.Helper()
	var keys []model.ObjectKey
	for _, o := range objects {
		key := c.reader.Read(o, time.Time{}).Key
		keys = append(keys, key)
		c.objects[key] = o
	}
	c.order.arrange(keys)
	for _, key := range keys {
		c.world.Set(c.reader.Read(c.objects[key], time.Time{}))
		c.checkReported()
	}
}

// delete removes an object.
func (c *cluster) delete(kind, name string) {
	c.t.Helper()
	key := model.ObjectKey{Kind: model.ObjectKind(kind), Name: name}
	if key.Kind != model.KindNode {
		service := serviceKey(name)
		key.Namespace, key.Name = service.Namespace, service.Name
	}
	if c.objects[key] == nil {
		c.t.Fatalf("there is no %s", key)
	}
	delete(c.objects, key)
	c.world.Delete(key)
	c.checkReported()
}

// serviceKey reads name or namespace/name.
func serviceKey(name string) model.ServiceKey {
	if namespace, name, ok := strings.Cut(name, "/"); ok {
		return model.ServiceKey{Namespace: namespace, Name: name}
	}
	return model.ServiceKey{Namespace: "default", Name: name}
}

// applyEndpoints adds slices with many endpoints, more to the slice than the controller puts there.
func (c *cluster) applyEndpoints(service, count string) {
	c.t.Helper()
	n, err := strconv.Atoi(count)
	if err != nil {
		c.t.Fatal(err)
	}
	const perSlice = 10_000
	c.big = c.big || n > perSlice
	var slices []runtime.Object
	for first := 0; first < n; first += perSlice {
		s := &discoveryv1.EndpointSlice{
			ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprintf("%s-%d", service, first/perSlice), Labels: map[string]string{discoveryv1.LabelServiceName: service}},
			AddressType: discoveryv1.AddressTypeIPv4,
			Ports:       []discoveryv1.EndpointPort{{Name: new(string), Port: new(int32(8080))}},
		}
		for i := first; i < min(n, first+perSlice); i++ {
			s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{fmt.Sprintf("10.%d.%d.%d", 64+i>>16, i>>8&255, i&255)}})
		}
		slices = append(slices, s)
	}
	c.set(slices)
}

// fresh returns a World that knows only what is now, told in the scenario's order.
func (c *cluster) fresh() *translate.World {
	w := translate.NewWorld()
	keys := slices.SortedFunc(maps.Keys(c.objects), func(a, b model.ObjectKey) int { return strings.Compare(a.String(), b.String()) })
	c.order.arrange(keys)
	for _, key := range keys {
		w.Set(c.reader.Read(c.objects[key], time.Time{}))
	}
	for name, problems := range c.problems {
		w.SetProblems(name, problems)
	}
	return w
}

// table returns a node's table, after comparing it with the one of a fresh World.
func (c *cluster) table(node string) translate.Table {
	c.t.Helper()
	table, fresh := c.world.Table(node), c.fresh().Table(node)
	if reflect.DeepEqual(table, fresh) {
		return table
	}
	// What is promised is equal bytes. The version of an object whose last write changed nothing may differ.
	if got, want := mustJSON(c.t, table), mustJSON(c.t, fresh); got != want {
		c.t.Errorf("node %s: after changes the table is\n%s\nbut a new World has\n%s", node, got, want)
	}
	return table
}

func (c *cluster) json(node string) string { return mustJSON(c.t, c.table(node)) }

func mustJSON(t *testing.T, table translate.Table) string {
	t.Helper()
	text, err := table.JSON()
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// checkReported drains the World's changes, and compares what all views see of each Service with what they saw before.
func (c *cluster) checkReported() {
	c.t.Helper()
	reported := map[model.ServiceKey]bool{}
	for _, key := range c.world.Changed() {
		reported[key] = true
		c.reported[key.String()] = true
	}
	if c.big {
		return // To look at so many endpoints after every change would take minutes.
	}
	views := c.views()
	for _, key := range c.services() {
		before, now := c.seen[key], c.look(key, views)
		c.seen[key] = now
		if reported[key] {
			continue
		}
		for view, old := range before {
			if now[view] != old {
				c.t.Errorf("%s looks different to %+v, but was not reported as changed: was\n%s\nis\n%s", key, view, old, now[view])
			}
		}
	}
}

// services returns all Services that there are or were.
func (c *cluster) services() []model.ServiceKey {
	for _, key := range c.world.Services() {
		if c.seen[key] == nil {
			c.seen[key] = nil
		}
	}
	return slices.SortedFunc(maps.Keys(c.seen), model.ServiceKey.Compare)
}

// views returns every combination of the nodes and zones that there are or were, and of ones that there never are.
func (c *cluster) views() []model.View {
	for _, name := range c.world.Nodes() {
		c.nodes[name], c.zones[c.world.Node(name).Zone] = true, true
	}
	var views []model.View
	for node := range c.nodes {
		for zone := range c.zones {
			views = append(views, model.View{Node: node, Zone: zone})
		}
	}
	return views
}

// look returns what views see of a Service.
func (c *cluster) look(key model.ServiceKey, views []model.View) map[model.View]string {
	plan := c.world.Plan(key)
	look := map[model.View]string{}
	variants := map[translate.Variant]string{}
	for _, view := range views {
		if plan == nil {
			look[view] = ""
			continue
		}
		variant := plan.Variant(view)
		if variants[variant] == "" {
			variants[variant] = mustJSON(c.t, translate.Table{Frontends: plan.Frontends(variant)})
		}
		look[view] = variants[variant]
	}
	return look
}

// checkChanged checks which Services have been reported since the last time.
func (c *cluster) checkChanged(names []string) {
	c.t.Helper()
	want := map[string]bool{}
	for _, name := range names {
		want[serviceKey(name).String()] = true
	}
	if !maps.Equal(want, c.reported) {
		c.t.Errorf("reported as changed: %v, want %v", slices.Sorted(maps.Keys(c.reported)), slices.Sorted(maps.Keys(want)))
	}
	clear(c.reported)
}

// explain returns an explanation as text.
func (c *cluster) explain(service, node string) string {
	var b strings.Builder
	for _, x := range c.world.Explain(serviceKey(service), c.world.View(node)) {
		fmt.Fprintf(&b, "%s %s", x.ServicePort, x.Family)
		if x.Hints != translate.HintsUnused {
			fmt.Fprintf(&b, ", hints for the %s hold", x.Hints)
		}
		if x.NodeHintsSwitchedOff.IsValid() {
			fmt.Fprintf(&b, ", hints for nodes switched off by %s", x.NodeHintsSwitchedOff)
		}
		if x.ZoneHintsSwitchedOff.IsValid() {
			fmt.Fprintf(&b, ", hints for zones switched off by %s", x.ZoneHintsSwitchedOff)
		}
		b.WriteByte('\n')
		for _, e := range x.Endpoints {
			fmt.Fprintf(&b, "  %s %s: cluster: %s, local: %s\n", e.Slice, e.Endpoint.AddrPort, e.Cluster, e.Local)
		}
	}
	return b.String()
}
