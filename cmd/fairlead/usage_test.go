package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/fairlead/fairlead/server/controlplane/status"
	"github.com/fairlead/fairlead/translate/model"
)

// A wrong command line has an exit code of its own, and an answer with the way out.
func TestUsage(t *testing.T) {
	for args, notes := range map[string]string{
		"status --wiat web":              "did you mean --wait? (fairlead status --help lists the flags)",
		"explain web --nod n1":           "did you mean --node?",
		"status --xyzzyx":                "unknown flag: --xyzzyx (fairlead status --help",
		"status web":                     "unknown command \"web\" for \"fairlead status\" (usage: fairlead status",
		"explain":                        "accepts 1 arg(s), received 0 (usage: fairlead explain SERVICE",
		"statsu":                         "status",
		"status -o xml":                  `--output "xml": use table, wide, json, yaml`,
		"status --watch --wait web":      "--watch and --wait: use one",
		"status --server-endpoints x":    `--server-endpoints "x": use NAMESPACE/NAME`,
		"explain web --from moon":        `--from "moon": use pod, node, outside`,
		"translate --node n1":            "give manifests by -f PATH",
		"translate -f - --node n1 -o ps": `--output "ps": use table, json, yaml, xds`,
		"serve --listen here":            `--listen "here"`,
		"serve --source directory --directory . --server-endpoints a/b": "--server-endpoints needs --source kubernetes",
	} {
		_, got, code := execute("", strings.Fields(args)...)
		if code != exitUsage || !strings.Contains(got, notes) {
			t.Errorf("%s: exit code %d, %q; want %d and %q", args, code, got, exitUsage, notes)
		}
	}
}

// The exit codes of what is asked of a control plane tell what is wrong, the most urgent first.
func TestStatusExitCodes(t *testing.T) {
	node := status.Node{Node: "n1", State: status.Forwarding, Connected: true}
	lost := status.Node{Node: "n1", State: status.NoAgent}
	problems := []model.Problem{{Object: "Service default/x", Reason: model.InvalidAddress, Message: "fix it"}}
	for name, test := range map[string]struct {
		now  status.Status
		args string
		code int
	}{
		"all is well":       {status.Status{Ready: true, Nodes: []status.Node{node}}, "", 0},
		"problems":          {status.Status{Ready: true, Nodes: []status.Node{node}, Problems: problems}, "", exitProblems},
		"a node":            {status.Status{Ready: true, Nodes: []status.Node{lost}, Problems: problems}, "-o wide", exitNotForwarding},
		"a replica besides": {status.Status{Ready: true, Nodes: []status.Node{lost}}, "--admin 127.0.0.1:1", exitUnreachable},
		"in vain":           {status.Status{}, "--wait web --timeout 2s", exitError},
	} {
		t.Run(name, func(t *testing.T) {
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path != "/debug/status" {
					http.Error(w, "no Service default/web is forwarded", http.StatusNotFound)
					return
				}
				if err := json.NewEncoder(w).Encode(test.now); err != nil {
					t.Error(err)
				}
			}))
			defer s.Close()
			out, notes, code := execute("", append([]string{"status", "--admin", s.Listener.Addr().String()}, strings.Fields(test.args)...)...)
			if code != test.code {
				t.Errorf("exit code %d, want %d; %s%s", code, test.code, out, notes)
			}
		})
	}
	if code := exitCode(errors.New("anything else")); code != exitError {
		t.Errorf("exit code %d of another error", code)
	}
}

// The API server is asked for what completes a name; the shell gets what begins with what was typed.
func TestCompletion(t *testing.T) {
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		lists := map[string]string{
			"/api/v1/namespaces": `{"kind": "NamespaceList", "apiVersion": "v1", "items": [{"metadata": {"name": "shop"}}, {"metadata": {"name": "default"}}]}`,
			"/api/v1/nodes":      `{"kind": "NodeList", "apiVersion": "v1", "items": [{"metadata": {"name": "n1"}}]}`,
			"/api/v1/services":   `{"kind": "ServiceList", "apiVersion": "v1", "items": [{"metadata": {"name": "web", "namespace": "shop"}}, {"metadata": {"name": "api", "namespace": "default"}}]}`,
		}
		fmt.Fprint(w, lists[r.URL.Path])
	}))
	defer api.Close()
	path := filepath.Join(t.TempDir(), "kubeconfig")
	content := fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: here, clusters: [{name: c, cluster: {server: "%s"}}],
contexts: [{name: here, context: {cluster: c, namespace: shop}}]}`, api.URL)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("KUBECONFIG", path)
	for args, want := range map[string]string{
		"explain |":            "web shop/web default/api",
		"explain --node |":     "n1",
		"explain --from |":     "pod node outside",
		"explain -n |sh":       "shop",
		"status --wait |def":   "default/api",
		"status --context |":   "here",
		"status -o |":          "table wide json yaml",
		"translate --output |": "table json yaml xds",
	} {
		before, typed, _ := strings.Cut(args, "|")
		out, notes, code := execute("", append(append([]string{cobra.ShellCompRequestCmd}, strings.Fields(before)...), typed)...)
		got, _, _ := strings.Cut(out, "\n:")
		if code != 0 || strings.Join(strings.Fields(got), " ") != want {
			t.Errorf("%s: %q, want %q (exit code %d, %s)", args, got, want, code, notes)
		}
	}
}

// By the names that kubectl looks for, the program is its plugin.
func TestPlugin(t *testing.T) {
	for name, want := range map[string]string{"fairlead": "  fairlead [command]", "kubectl-fairlead": "  kubectl fairlead [command]", "kubectl_complete-fairlead": "status\t"} {
		root := newRootCommand()
		var b strings.Builder
		root.SetOut(&b)
		root.SetArgs(nil)
		asPlugin(root, name, []string{""})
		if err := root.Execute(); err != nil || !strings.Contains(b.String(), want) {
			t.Errorf("%s: %v, no %q in\n%s", name, err, want, b.String())
		}
	}
}
