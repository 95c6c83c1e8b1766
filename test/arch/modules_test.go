package arch

import (
	"maps"
	"slices"
	"strings"
	"testing"
)

// maxProjects is how many projects Fairlead itself may depend on directly.
const maxProjects = 15

// A requirement is a module that a go.mod asks for by name.
type requirement struct{ module, comment string }

// direct returns the requirements of a go.mod that are not marked indirect.
func direct(text string) []requirement {
	var found []requirement
	inside := false
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		switch {
		case line == "require (":
			inside = true
			continue
		case line == ")":
			inside = false
			continue
		}
		line, single := strings.CutPrefix(line, "require ")
		if !inside && !single || line == "" || strings.HasPrefix(line, "//") {
			continue
		}
		entry, comment, _ := strings.Cut(line, "//")
		if comment = strings.TrimSpace(comment); comment != "indirect" {
			found = append(found, requirement{strings.Fields(entry)[0], comment})
		}
	}
	return found
}

func TestDependenciesHaveAReason(t *testing.T) {
	required := direct(string(texts(t)["go.mod"]))
	if len(required) == 0 {
		t.Error("go.mod names no direct dependency: is it read right?")
	}
	for _, r := range required {
		if r.comment == "" {
			t.Errorf("go.mod requires %s without a reason: write it as a comment at the end of the line; adding a dependency needs a better one than convenience", r.module)
		}
	}
	projects := map[string]bool{}
	for _, r := range required {
		projects[project(r.module)] = true
	}
	if len(projects) > maxProjects {
		t.Errorf("go.mod depends on %d projects, more than the %d that can be watched over: %v", len(projects), maxProjects, slices.Sorted(maps.Keys(projects)))
	}
}

// project returns who makes a module: what is trusted, released and upgraded together.
func project(module string) string {
	parts := strings.Split(module, "/")
	if parts[0] == "github.com" {
		return strings.Join(parts[:2], "/")
	}
	return parts[0]
}

func TestDirectReadsRequirements(t *testing.T) {
	got := direct("module m\n\nrequire a.b/one v1.0.0\nrequire (\n\ta.b/two v1.2.3 // Why.\n\ta.b/three v0.1.0 // indirect\n)\n")
	if len(got) != 2 || got[0] != (requirement{"a.b/one", ""}) || got[1] != (requirement{"a.b/two", "Why."}) {
		t.Errorf("read %v", got)
	}
}
