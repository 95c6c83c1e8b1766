package source

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/fairlead/fairlead/translate/model"
)

// names returns the kinds, namespaces and names of objects.
func names(t *testing.T, objects []runtime.Object) []string {
	t.Helper()
	var all []string
	for _, o := range objects {
		m, err := meta.Accessor(o)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, fmt.Sprintf("%T %s/%s", o, m.GetNamespace(), m.GetName()))
	}
	return all
}

// summaries returns problems without the parts of their messages that other libraries word.
func summaries(problems []model.Problem) []string {
	var all []string
	for _, p := range problems {
		message, _, _ := strings.Cut(p.Message, ":")
		all = append(all, p.Object+" "+string(p.Reason)+" "+message)
	}
	return all
}

func TestReadManifests(t *testing.T) {
	for _, tc := range []struct {
		name         string
		input        string
		want         []string
		wantProblems []string
	}{
		{"nothing", "", nil, nil},
		{"only comments and separators", "# a comment\n---\n---\n# another\n---\n", nil, nil},
		{
			"the namespace is default unless it is written, and a Node has none",
			"{apiVersion: v1, kind: Service, metadata: {name: a}}\n---\n{apiVersion: v1, kind: Node, metadata: {name: n1, namespace: x}}\n--- {apiVersion: v1, kind: Service, metadata: {name: b, namespace: ns}}\n",
			[]string{"*v1.Service default/a", "*v1.Node /n1", "*v1.Service ns/b"}, nil,
		},
		{
			"other kinds, and kinds of the same name in other groups, are passed over",
			"{apiVersion: v1, kind: Pod, metadata: {name: a}}\n---\n{apiVersion: serving.knative.dev/v1, kind: Service, metadata: {name: a}}\n---\n{apiVersion: apps/v1, kind: DeploymentList, items: [{metadata: {name: a}}]}",
			nil, nil,
		},
		{
			"lists, with and without kinds in them, and lists in lists",
			`{"apiVersion": "v1", "kind": "List", "items": [
				{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}},
				{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}},
				{"apiVersion": "v1", "kind": "NodeList", "items": [{"metadata": {"name": "n1"}}]},
				{"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSliceList", "items": [{"addressType": "IPv4", "metadata": {"name": "s"}}]},
				{"apiVersion": "v1", "kind": "ServiceList", "items": [{"metadata": {"name": "b"}}]}]}`,
			[]string{"*v1.Service default/a", "*v1.Node /n1", "*v1.EndpointSlice default/s", "*v1.Service default/b"}, nil,
		},
		{
			"a broken document costs only itself",
			"{apiVersion: v1, kind: Service, metadata: {name: a}}\n---\napiVersion: v1\nkind: [Service\n---\nmetadata: {name: b}\n---\njust words\n---\n{apiVersion: v1, kind: Service, metadata: {name: c}}\n---\n{apiVersion: v1, kind: Service, metadata: {name: d}, spec: {ports: [{port: many}]}}\n---\n{apiVersion: v1, kind: Service}\n",
			[]string{"*v1.Service default/a", "*v1.Service default/c"},
			[]string{
				"Service default/d InvalidObject spec.ports.port is text where a whole number of at most 32 bits is expected; correct the field (in standard input, document 6)",
				"standard input, document 2 Unreadable not YAML",
				`standard input, document 3 InvalidObject apiVersion and kind are missing, there is "metadata"; is this a Kubernetes object?`,
				"standard input, document 4 InvalidObject text, not a Kubernetes object",
				"standard input, document 7 InvalidObject the Service has no metadata.name; give it one",
			},
		},
		{
			"a broken item of a list costs only itself",
			"{apiVersion: v1, kind: List, items: [7, {apiVersion: v1, kind: Node, metadata: {name: n1}}, {apiVersion: v1, kind: Node, metadata: {name: []}}]}",
			[]string{"*v1.Node /n1"},
			[]string{
				"standard input, document 1, item 1 InvalidObject the value 7, not a Kubernetes object; replace or remove it",
				"standard input, document 1, item 3 InvalidObject not a Node",
			},
		},
		{
			"the first of several manifests of one object counts",
			"{apiVersion: v1, kind: Service, metadata: {name: a}}\n---\n{apiVersion: v1, kind: Node, metadata: {name: a}}\n---\n{apiVersion: v1, kind: Service, metadata: {name: a, namespace: default}}\n",
			[]string{"*v1.Service default/a", "*v1.Node /a"},
			[]string{"standard input, document 3 DuplicateObject Service default/a is described in standard input, document 1 already, which counts; remove one of the two"},
		},
		{
			"lines may end as on Windows, and dashes within text separate nothing",
			"apiVersion: v1\r\nkind: Service\r\nmetadata:\r\n  name: a\r\n  annotations:\r\n    text: |\r\n      ---\r\n      more\r\n---\r\napiVersion: v1\r\nkind: Service\r\nmetadata: {name: b}\r\n----\r\n",
			[]string{"*v1.Service default/a"},
			[]string{"standard input, document 2 Unreadable not YAML"},
		},
		{
			"field names are case-sensitive, as in Kubernetes",
			"{apiVersion: v1, kind: Service, metadata: {name: a}, SPEC: {ports: many}}",
			[]string{"*v1.Service default/a"},
			[]string{"Service default/a InvalidField SPEC is no field of this object, and is passed over; write spec (in standard input, document 1)"},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := ReadManifests([]string{Stdin}, strings.NewReader(tc.input))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, names(t, got.Objects)); diff != "" {
				t.Errorf("objects (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tc.wantProblems, summaries(got.Problems)); diff != "" {
				t.Errorf("problems (-want +got):\n%s", diff)
			}
		})
	}
}

func TestReadManifestsFillsInPortNames(t *testing.T) {
	const input = `{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: s}, ports: [{port: 80}, {name: http, port: 8080}]}`
	got, err := ReadManifests([]string{Stdin}, strings.NewReader(input))
	if err != nil || len(got.Objects) != 1 {
		t.Fatalf("got %d objects and error %v, want 1", len(got.Objects), err)
	}
	ports := got.Objects[0].(*discoveryv1.EndpointSlice).Ports
	if ports[0].Name == nil || *ports[0].Name != "" || *ports[1].Name != "http" {
		t.Errorf("got port names %v and %v, want an empty one and http", ports[0].Name, ports[1].Name)
	}
}

func TestReadManifestsOfFolders(t *testing.T) {
	service := func(name string) string {
		return "{apiVersion: v1, kind: Service, metadata: {name: " + name + "}}"
	}
	folder, file := t.TempDir(), filepath.Join(t.TempDir(), "0.txt")
	for path, text := range map[string]string{
		"b.yaml": service("b"), "a.yml": service("a"), "c.json": `{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "c"}}`,
		"d.txt": service("d"), ".e.yaml": service("e"), "sub/f.yaml": service("f"), "g.yaml": "[",
		file: service("given"),
	} {
		if !filepath.IsAbs(path) {
			path = filepath.Join(folder, path)
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(folder, "h.yaml"), 0o755); err != nil {
		t.Fatal(err)
	}
	read, err := ReadManifests([]string{folder, file, folder + "/", filepath.Join(folder, "a.yml")}, nil)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]bool{}
	for _, o := range read.Objects {
		got[o.(*corev1.Service).Name] = true
	}
	if diff := cmp.Diff(map[string]bool{"a": true, "b": true, "c": true, "given": true}, got); diff != "" {
		t.Errorf("Services (-want +got):\n%s", diff)
	}
	want := []string{
		filepath.Join(folder, "g.yaml") + ", document 1 Unreadable not YAML",
		filepath.Join(folder, "h.yaml") + " Unreadable read " + filepath.Join(folder, "h.yaml"),
	}
	if diff := cmp.Diff(want, summaries(read.Problems)); diff != "" {
		t.Errorf("problems (-want +got):\n%s", diff)
	}
}

func TestReadManifestsNeedsItsPaths(t *testing.T) {
	folder := t.TempDir()
	for _, path := range []string{
		filepath.Join(folder, "missing.yaml"),
		filepath.Join(folder, "*.yaml"),
		filepath.Join(folder, "[.yaml"),
		folder, // Without a manifest.
	} {
		if _, err := ReadManifests([]string{path}, nil); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("got error %v, want one that names %s", err, path)
		}
	}
}

// Patterns that the shell left alone are resolved, symbolic links are followed, and one that leads nowhere is told of.
func TestReadManifestsOfPatternsAndLinks(t *testing.T) {
	folder := t.TempDir()
	for _, name := range []string{"a.yaml", "b.yaml", "c[1].yaml"} {
		text := "{apiVersion: v1, kind: Node, metadata: {name: " + name[:1] + "}}"
		if err := os.WriteFile(filepath.Join(folder, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	links := filepath.Join(t.TempDir(), "links")
	for _, err := range []error{
		os.Mkdir(links, 0o700),
		os.Symlink(filepath.Join(folder, "a.yaml"), filepath.Join(links, "a.yaml")),
		os.Symlink("nowhere", filepath.Join(links, "b.yaml")),
		os.Symlink(folder, filepath.Join(links, "all")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, tc := range map[string]struct {
		path         string
		want         []string
		wantProblems []string
	}{
		"a pattern":                    {filepath.Join(folder, "[ab].yaml"), []string{"*v1.Node /a", "*v1.Node /b"}, nil},
		"a name that could be one":     {filepath.Join(folder, "c[1].yaml"), []string{"*v1.Node /c"}, nil},
		"a folder that is a link":      {filepath.Join(links, "all"), []string{"*v1.Node /a", "*v1.Node /b", "*v1.Node /c"}, nil},
		"a folder with links":          {links, []string{"*v1.Node /a"}, []string{filepath.Join(links, "b.yaml") + " Unreadable the symbolic link leads to nowhere, which does not exist; correct or remove it"}},
		"a file that is a link itself": {filepath.Join(links, "a.yaml"), []string{"*v1.Node /a"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := ReadManifests([]string{tc.path}, nil)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, names(t, got.Objects)); diff != "" {
				t.Errorf("objects (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tc.wantProblems, summaries(got.Problems)); diff != "" {
				t.Errorf("problems (-want +got):\n%s", diff)
			}
		})
	}
}

func FuzzReadManifests(f *testing.F) {
	for _, seed := range []string{
		"{apiVersion: v1, kind: Service, metadata: {name: a}}\n---\n[", "---\n--- \n---x\n", `{"kind":"List","apiVersion":"v1","items":[null,{}]}`,
		"apiVersion: v1\nkind: ServiceList\nitems: [{metadata: {name: b}}]", "a: &a [*a]", "\xff\x00",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, input string) {
		read, err := ReadManifests([]string{Stdin}, strings.NewReader(input))
		if err != nil {
			t.Fatalf("error %v about content, which is a matter of problems", err)
		}
		for _, p := range read.Problems {
			if p.Object == "" || p.Reason == "" || p.Message == "" {
				t.Errorf("problem %+v does not say all", p)
			}
		}
		names(t, read.Objects)
	})
}
