package arch

import (
	"slices"
	"testing"
)

// A rule is one law about Go source. Its example breaks it, which proves that the rule can fail.
type rule struct {
	name    string
	why     string
	applies func(*source) bool
	find    func(*source) []finding
	example example
}

// A finding is a place that breaks a rule.
type finding struct {
	line int
	what string
}

// An example is a Go file that a rule has to find fault with.
type example struct{ path, text string }

func everywhere(s *source) bool { return !s.generated() }
func inProduct(s *source) bool  { return !s.generated() && !s.isTest() }

func rules() []rule { return slices.Concat(importRules, purityRules, callRules, shapeRules) }

func TestRules(t *testing.T) {
	all := sources(t)
	for _, r := range rules() {
		t.Run(r.name, func(t *testing.T) {
			for _, s := range all {
				if !r.applies(s) {
					continue
				}
				for _, f := range r.find(s) {
					t.Errorf("%s:%d: %s: %s", s.path, f.line, f.what, r.why)
				}
			}
		})
	}
}

func TestRulesFindTheirExamples(t *testing.T) {
	for _, r := range rules() {
		t.Run(r.name, func(t *testing.T) {
			s, err := parse(r.example.path, []byte(r.example.text))
			if err != nil {
				t.Fatal(err)
			}
			if !r.applies(s) || len(r.find(s)) == 0 {
				t.Errorf("the rule finds no fault with %s:\n%s", r.example.path, r.example.text)
			}
		})
	}
}
