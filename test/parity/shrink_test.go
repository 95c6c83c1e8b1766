package parity

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"testing"
)

// shrink leaves out of a cluster, bit by bit, all without which it still differs. It knows nothing of objects: what is left out
// is any field or element of their JSON, the larger ones first.
func shrink(c *cluster, differs func(*cluster) bool) *cluster {
	var tree any
	if err := json.Unmarshal(must(json.Marshal(c)), &tree); err != nil {
		panic(err)
	}
	still := func() (*cluster, bool) {
		smaller := new(cluster)
		if json.Unmarshal(must(json.Marshal(tree)), smaller) != nil {
			return nil, false // What is left is no object.
		}
		return smaller, differs(smaller)
	}
	for shrunk := true; shrunk; {
		shrunk = false
		for depth := range 12 {
			prune(tree, func(t any) { tree = t }, depth, func() bool {
				smaller, ok := still()
				if ok {
					c, shrunk = smaller, true
				}
				return ok
			})
		}
	}
	return c
}

// prune tries to do without each field or element at a depth below a node of JSON. Put replaces the node.
func prune(node any, put func(any), depth int, still func() bool) {
	switch node := node.(type) {
	case map[string]any:
		for _, key := range slices.Sorted(maps.Keys(node)) {
			value := node[key]
			if depth > 0 {
				prune(value, func(v any) { node[key] = v }, depth-1, still)
				continue
			}
			if key == "Node" || key == "metadata" || key == "name" || key == "namespace" {
				continue // An object without a name is another one.
			}
			if delete(node, key); !still() {
				node[key] = value
			}
		}
	case []any:
		if depth > 0 {
			for i := range node {
				prune(node[i], func(v any) { node[i] = v }, depth-1, still)
			}
			return
		}
		for size := max(1, len(node)/2); size > 0; size /= 2 { // Many at once first.
			for at := len(node) - size; at >= 0; at -= size {
				shorter := slices.Delete(slices.Clone(node), at, at+size)
				if put(shorter); still() {
					node = shorter
				} else {
					put(node)
				}
			}
		}
	}
}

// smallest returns the smallest cluster that still differs, and how.
func (k *kubeProxy) smallest(t *testing.T, c *cluster, without *difference) (*cluster, []string) {
	differs := func(c *cluster) (found []string) {
		defer func() {
			if recover() != nil { // kube-proxy relies on what the API server lets through.
				found = nil
			}
		}()
		found, _, err := k.compare(t.Context(), c, without)
		if err != nil {
			return nil
		}
		return found
	}
	c = shrink(c, func(c *cluster) bool { return len(differs(c)) > 0 })
	return c, differs(c)
}

func TestShrink(t *testing.T) {
	c := newCluster(1)
	want := fmt.Sprint(c.Services[0].Spec.Ports[0].Port)
	small := shrink(c, func(c *cluster) bool {
		return len(c.Services) > 0 && len(c.Services[0].Spec.Ports) > 0 && fmt.Sprint(c.Services[0].Spec.Ports[0].Port) == want
	})
	if len(small.Services) != 1 || len(small.Services[0].Spec.Ports) != 1 || small.Services[0].Spec.ClusterIPs != nil ||
		small.Slices != nil || small.Nodes != nil {
		t.Errorf("not the smallest cluster with a port %s:\n%s", want, small.manifests())
	}
}
