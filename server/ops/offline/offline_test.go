package offline

import (
	"encoding/json"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const manifests = `{apiVersion: v1, kind: Node, metadata: {name: n1}}
---
{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: 10.96.0.1, type: NodePort, ports: [{port: 80, nodePort: 30080}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: b}, spec: {clusterIP: 10.96.0.2, type: NodePort, ports: [{port: 80, nodePort: 30080}]}}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: a-1, labels: {kubernetes.io/service-name: a}}, addressType: IPv4, ports: [{port: 80}], endpoints: [{addresses: [10.0.0.2]}, {addresses: [10.0.0.1]}]}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: a-2, labels: {kubernetes.io/service-name: a}}, addressType: IPv4, ports: [{port: 81}], endpoints: [{addresses: [10.0.0.1]}, {addresses: [localhost]}]}
`

func run(t *testing.T, cfg Config) string {
	t.Helper()
	var b strings.Builder
	if err := Run(cfg, &b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestOutputDoesNotDependOnTheOrderOfInput(t *testing.T) {
	documents := strings.Split(strings.TrimSpace(manifests), "\n---\n")
	for _, format := range Formats {
		t.Run(format, func(t *testing.T) {
			want := run(t, Config{Paths: []string{"-"}, Stdin: strings.NewReader(manifests), Node: "n1", Format: format})
			for seed := range uint64(10) {
				random := rand.New(rand.NewPCG(seed, seed))
				random.Shuffle(len(documents), func(i, j int) { documents[i], documents[j] = documents[j], documents[i] })
				folder := t.TempDir()
				var paths []string
				for _, d := range documents {
					path := filepath.Join(folder, string(rune('a'+len(paths)))+".yaml")
					if err := os.WriteFile(path, []byte(d), 0o600); err != nil {
						t.Fatal(err)
					}
					paths = append(paths, path)
				}
				for _, cfg := range []Config{
					{Paths: paths},
					{Paths: []string{folder}},
					{Paths: []string{"-"}, Stdin: strings.NewReader(strings.Join(documents, "\n---\n"))},
				} {
					cfg.Node, cfg.Format = "n1", format
					if got := run(t, cfg); got != want {
						t.Fatalf("from %v got\n%s\nwant\n%s", cfg.Paths, got, want)
					}
				}
			}
		})
	}
}

func TestResources(t *testing.T) {
	var got struct {
		Node      string
		Resources []struct {
			TypeURL, Name string
			Resource      map[string]any
		}
		Problems []struct{ Object, Reason string }
	}
	text := run(t, Config{Paths: []string{"-"}, Stdin: strings.NewReader(manifests), Node: "n1", Format: "xds"})
	if err := json.Unmarshal([]byte(text), &got); err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, r := range got.Resources {
		if len(r.Resource) == 0 {
			t.Errorf("%s %s is empty", r.TypeURL, r.Name)
		}
		names[r.TypeURL[strings.LastIndex(r.TypeURL, ".")+1:]+" "+r.Name] = true
	}
	for _, name := range []string{"Cluster 10.96.0.1:80", "Cluster *:30080", "ClusterLoadAssignment default/a:80/TCP", "ClusterLoadAssignment default/b:80/TCP", "Frontend *:30080/TCP"} {
		if !names[name] {
			t.Errorf("%s is missing in\n%s", name, text)
		}
	}
	if got.Node != "n1" || len(got.Problems) != 2 {
		t.Errorf("got node %q and problems %v, want n1 and two", got.Node, got.Problems)
	}
}

func TestRunSaysWhatIsMissing(t *testing.T) {
	for _, tc := range []struct {
		cfg  Config
		want string
	}{
		{Config{Node: "n1", Format: "json"}, "no manifests"},
		{Config{Paths: []string{"-"}, Format: "json"}, "no node"},
		{Config{Paths: []string{"-"}, Node: "n1", Format: "xml"}, `"table" "json" "yaml" "xds"`},
		{Config{Paths: []string{"missing.yaml"}, Node: "n1", Format: "json"}, "missing.yaml"},
	} {
		if err := Run(tc.cfg, os.Stderr); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%+v: got error %v, want one with %q", tc.cfg, err, tc.want)
		}
	}
}

// Manifests in which nothing can be read are an error, and those with problems are if that is asked for. What there is to
// say is said in either case.
func TestExit(t *testing.T) {
	const (
		service    = "{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}}\n---\n"
		node       = "{apiVersion: v1, kind: Node, metadata: {name: n1}}\n---\n"
		deployment = "{apiVersion: apps/v1, kind: Deployment, metadata: {name: a}}\n---\n"
		status     = `{apiVersion: v1, kind: Status, message: Unauthorized}`
	)
	for name, tc := range map[string]struct {
		manifests      string
		failOnProblems bool
		want           string // In the table.
		wantErr        string
		wantNotes      string
	}{
		"all is well":                  {service + node + deployment, true, "10.96.0.1:80/TCP", "", "passed over: 1 Deployment\n"},
		"problems":                     {service + node + status, true, "Unauthorized", ErrProblems.Error(), ""},
		"problems that do not matter":  {service + node + status, false, "Unauthorized", "", ""},
		"a node that no object tells":  {service, true, "UnknownNode", ErrProblems.Error(), ""},
		"nothing but other kinds":      {deployment, false, "Nothing is forwarded", "could be read: there is only 1 Deployment", "passed over: 1 Deployment\n"},
		"nothing but an answer":        {status + "\n---\n[]\n---\n" + deployment, true, "Unauthorized", "could be read: standard input, document 1: an answer of the API server, not an object: \"Unauthorized\"; ask it again for the objects; and 1 more", "passed over: 1 Deployment\n"},
		"nothing":                      {"", false, "Nothing is forwarded", "could be read: they are empty", ""},
		"a Service without a frontend": {"{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: None}}", false, "Nothing is forwarded", "", ""},
	} {
		for _, format := range Formats {
			t.Run(name+" as "+format, func(t *testing.T) {
				var b, notes strings.Builder
				err := Run(Config{
					Paths: []string{"-"}, Stdin: strings.NewReader(tc.manifests), Node: "n1", Format: format,
					FailOnProblems: tc.failOnProblems, Notes: &notes,
				}, &b)
				if format == Formats[0] && !strings.Contains(b.String(), tc.want) {
					t.Errorf("no %q in\n%s", tc.want, &b)
				}
				if b.Len() == 0 {
					t.Error("no answer")
				}
				if (err != nil) != (tc.wantErr != "") || err != nil && !strings.Contains(err.Error(), tc.wantErr) {
					t.Errorf("got error %v, want %q", err, tc.wantErr)
				}
				if errors.Is(err, ErrProblems) != (tc.wantErr == ErrProblems.Error()) {
					t.Errorf("%v is ErrProblems, or is not", err)
				}
				if notes.String() != tc.wantNotes {
					t.Errorf("got notes %q, want %q", &notes, tc.wantNotes)
				}
			})
		}
	}
}
