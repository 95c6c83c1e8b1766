package demo

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/fairlead/fairlead/server/lab"
	"github.com/fairlead/fairlead/server/source"
)

// The whole demo runs in test/node. These tests are about what it needs of manifests.

const quickstart = "../../../examples/quickstart"

func TestMain(m *testing.M) {
	code, err := lab.Isolated(m.Run)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(code)
}

// Manifests that the lab cannot play are refused with the object and what is wrong with it.
func TestManifestsThatDoNotFit(t *testing.T) {
	for name, tc := range map[string]struct{ file, old, new, want string }{
		"node with an address of its own": {"nodes.yaml", "address: 172.30.0.2", "address: 172.30.0.9", "Node n2"},
		"pod outside its node's range":    {"web-ipv4.yaml", "10.244.2.11", "10.244.1.11", "pod web-3"},
		"two pods at one address":         {"web-ipv4.yaml", "10.244.2.11", "10.244.2.10", "pod web-2"},
		"endpoint without a pod":          {"web-ipv4.yaml", "targetRef: {kind: Pod, namespace: default, name: web-1}", "", "targetRef"},
		"pod on a node that is not there": {"web-ipv4.yaml", "nodeName: n1", "nodeName: n7", "node n7"},
		"one node":                        {"nodes.yaml", "name: n2\n", "name: n1\n", "n1"},
		"broken YAML":                     {"empty.yaml", "spec:", "spec: [", "empty.yaml"},
	} {
		t.Run(name, func(t *testing.T) {
			manifests := t.TempDir()
			if err := os.CopyFS(manifests, os.DirFS(quickstart)); err != nil {
				t.Fatal(err)
			}
			replace(t, filepath.Join(manifests, tc.file), tc.old, tc.new)
			t.Setenv("TMPDIR", t.TempDir())
			var out strings.Builder
			err := Run(t.Context(), Config{Manifests: manifests, Fairlead: "/does/not/exist", Envoy: "/does/not/exist", Out: &out})
			if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), "logs and state are in") {
				t.Errorf("got %v, want an error that names %q", err, tc.want)
			}
		})
	}
}

func replace(t *testing.T, path, before, after string) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), before) {
		t.Fatalf("%s has no %q", path, before)
	}
	if err := os.WriteFile(path, []byte(strings.Replace(string(text), before, after, 1)), 0o644); err != nil {
		t.Fatal(err)
	}
}

// An edited EndpointSlice is still one that can be read, with the change and all else.
func TestEditWeb(t *testing.T) {
	d := &demo{dir: t.TempDir()}
	if err := os.CopyFS(d.manifests(), os.DirFS(quickstart)); err != nil {
		t.Fatal(err)
	}
	err := d.editWeb(func(s *discoveryv1.EndpointSlice) { podOf(s, "web-2").Conditions.Ready = new(false) })
	if err != nil {
		t.Fatal(err)
	}
	read, err := source.ReadManifests([]string{d.manifests()}, nil)
	if err != nil || len(read.Problems) > 0 {
		t.Fatal(err, read.Problems)
	}
	edited := 0
	for _, o := range read.Objects {
		s, ok := o.(*discoveryv1.EndpointSlice)
		if !ok || podOf(s, "web-2") == nil {
			continue
		}
		edited++
		if *podOf(s, "web-2").Conditions.Ready || !*podOf(s, "web-1").Conditions.Ready || len(s.Endpoints) != 3 {
			t.Errorf("EndpointSlice %s: %+v", s.Name, s.Endpoints)
		}
	}
	if edited != len(webSlices) {
		t.Errorf("%d slices have the pod, want %d", edited, len(webSlices))
	}
}
