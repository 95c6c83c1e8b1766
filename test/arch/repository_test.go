package arch

import (
	"bytes"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// topEntries are all that may stand at the top of the checkout.
var topEntries = []string{
	".ci", ".gitignore", ".golangci.yml", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "README.md", "SECURITY.md", "cache", "cmd", "deploy",
	"examples", "go.mod", "go.sum", "server", "test", "translate",
}

func TestTopHasOnlyNamedEntries(t *testing.T) {
	all, err := files()
	if err != nil {
		t.Fatal(err)
	}
	for name := range all {
		if top, _, _ := strings.Cut(name, "/"); !slices.Contains(topEntries, top) {
			t.Errorf("%s: %s is no part of the layout, which a reader has to learn only once: move it into one of %v", name, top, topEntries)
		}
	}
}

func TestTopFoldersHaveAOnePageReadme(t *testing.T) {
	const page = 120 // Lines.
	all := texts(t)
	folders := map[string]bool{}
	for name := range all {
		if top, _, nested := strings.Cut(name, "/"); nested && !strings.HasPrefix(top, ".") {
			folders[top] = true
		}
	}
	for folder := range folders {
		readme, ok := all[folder+"/README.md"]
		if !ok {
			t.Errorf("%s has no README.md: every folder at the top says on one page what comes in, what goes out and what it never does", folder)
		}
		if n := bytes.Count(readme, []byte("\n")); n > page {
			t.Errorf("%s/README.md has %d lines: more than a page is not read; move details beside the code", folder, n)
		}
	}
}

// link matches a link or picture of a Markdown page that does not lead to another site or to a place on the same page.
var link = regexp.MustCompile(`\]\(([^)#: ]+)(#[^)]*)?\)`)

func TestMarkdownLinksLeadSomewhere(t *testing.T) {
	for name, text := range texts(t) {
		if path.Ext(name) != ".md" {
			continue
		}
		for _, match := range link.FindAllSubmatch(text, -1) {
			target := path.Join(path.Dir(name), string(match[1]))
			if _, err := os.Stat(path.Join(root, target)); err != nil {
				t.Errorf("%s links to %s, which does not exist: a page with dead links is not trusted in the rest", name, target)
			}
		}
	}
}

// A textRule is about all text files. Its example breaks it.
var textRules = []struct{ name, pattern, why, example string }{
	// The patterns are in pieces, lest they match themselves. context.TODO has a rule of its own.
	{"nothing is left to do", `(^|[^.\w"])(TO` + `DO|FIX` + `ME|XX` + `X|HA` + `CK)\b`, "work that is left is tracked where work is tracked, not in the code that is called done", "// TO" + "DO: later"},
	{"no path of one machine", `(^|[^.\w}])/(wo` + `rk|ro` + `ot|ho` + `me)/\w`, "the checkout means the same on every machine", "cd /wo" + "rk/main"},
}

func TestTexts(t *testing.T) {
	for _, r := range textRules {
		t.Run(r.name, func(t *testing.T) {
			pattern := regexp.MustCompile(r.pattern)
			if !pattern.MatchString(r.example) {
				t.Errorf("the rule finds no fault with %q", r.example)
			}
			for name, text := range texts(t) {
				for i, line := range bytes.Split(text, []byte("\n")) {
					if hit := pattern.Find(line); hit != nil {
						t.Errorf("%s:%d: %q: %s", name, i+1, hit, r.why)
					}
				}
			}
		})
	}
}
