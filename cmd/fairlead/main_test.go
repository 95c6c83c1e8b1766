package main

import (
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
)

// execute carries out a command line and returns what it writes to standard output and to standard error, and its exit
// code.
func execute(input string, args ...string) (out, notes string, code int) {
	var b, e strings.Builder
	root := newRootCommand()
	root.SetArgs(args)
	root.SetIn(strings.NewReader(input))
	root.SetOut(&b)
	root.SetErr(&e)
	if err := root.Execute(); err != nil {
		e.WriteString(err.Error())
		code = exitCode(err)
	}
	return b.String(), e.String(), code
}

// The exit codes of translate and explain are what scripts see.
func TestExitCodes(t *testing.T) {
	const (
		node    = "{apiVersion: v1, kind: Node, metadata: {name: n1}}\n---\n"
		service = "{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {clusterIP: 10.96.0.10, ports: [{port: 80}]}}\n---\n"
	)
	for name, test := range map[string]struct {
		input string
		args  string
		code  int
		notes string // In standard error.
	}{
		"all is well":          {node + service, "translate -f - --node n1 --fail-on problems", 0, ""},
		"problems":             {node + service + "[]", "translate -f - --node n1 --fail-on problems", 3, "there are problems, see the output"},
		"problems, not asked":  {node + service + "[]", "translate -f - --node n1", 0, ""},
		"problems, in JSON":    {node + service + "[]", "translate -f - --node n1 -o json --fail-on problems", 3, "there are problems"},
		"nothing to read":      {"[]", "translate -f - --node n1 --fail-on problems", 1, "no Service, EndpointSlice or Node could be read"},
		"nothing at all":       {"", "translate -f - --node n1", 1, "they are empty"},
		"passed over":          {service + "{apiVersion: v1, kind: Pod}", "translate -f - --node n1", 0, "passed over: 1 Pod\n"},
		"no such file":         {"", "translate -f missing.yaml --node n1", 1, "missing.yaml"},
		"no such condition":    {node, "translate -f - --node n1 --fail-on all", 2, `--fail-on "all": use nothing, problems`},
		"explained":            {node + service, "explain web -f -", 0, ""},
		"explained of nothing": {"error: Unauthorized", "explain web -f -", 1, "apiVersion and kind are missing"},
		"not forwarded":        {node, "explain web -f -", 1, "no Service default/web is forwarded"},
	} {
		t.Run(name, func(t *testing.T) {
			out, notes, code := execute(test.input, strings.Fields(test.args)...)
			if code != test.code {
				t.Errorf("exit code %d, want %d", code, test.code)
			}
			if !strings.Contains(notes, test.notes) || test.notes == "" && notes != "" {
				t.Errorf("standard error %q, want %q", notes, test.notes)
			}
			if test.code == 0 && out == "" {
				t.Error("no answer")
			}
		})
	}
}

func TestVersion(t *testing.T) {
	t.Cleanup(func() { version = "" })
	version = "v1.2.3"
	for _, arg := range []string{"version", "--version"} {
		out, _, code := execute("", arg)
		if code != 0 || !strings.HasPrefix(out, "fairlead v1.2.3 (commit ") || !strings.Contains(out, runtime.Version()) {
			t.Errorf("%s: exit code %d, %q", arg, code, out)
		}
	}
	if version = ""; !strings.HasPrefix(versionText(), "devel (commit ") {
		t.Errorf("a build without a version is %q", versionText())
	}
	revision := debug.BuildSetting{Key: "vcs.revision", Value: "abc"}
	for want, settings := range map[string][]debug.BuildSetting{
		"":                  {{Key: "vcs.modified", Value: "true"}},
		"abc":               {revision, {Key: "vcs.modified", Value: "false"}},
		"abc, with changes": {revision, {Key: "vcs.modified", Value: "true"}},
	} {
		if got := commitOf(settings); got != want {
			t.Errorf("%v: got %q, want %q", settings, got, want)
		}
	}
}
