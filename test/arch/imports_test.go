package arch

import (
	"fmt"
	"go/ast"
	"path"
	"strings"
)

// ranks is the order of imports: a package imports its own rank and lower ones. The longest prefix counts.
var ranks = map[string]int{
	"cmd":                  5,
	"server":               4,
	"cache":                3,
	"translate":            2,
	"translate/frontendpb": 1,
	"translate/model":      1,
}

// rank returns a folder's rank, or 0 for a folder that is no part of the program.
func rank(folder string) int {
	for ; folder != "."; folder = path.Dir(folder) {
		if r := ranks[folder]; r > 0 {
			return r
		}
	}
	return 0
}

var importRules = []rule{
	{
		name:    "imports run one way",
		why:     "imports run cmd → server → cache → translate → translate/model, never back, so that each part can be read and tested without those above it",
		applies: inProduct,
		find: func(s *source) []finding {
			return findImports(s, func(imported, _ string) string {
				inside, ok := strings.CutPrefix(imported, module+"/")
				if ok && (rank(inside) == 0 || rank(inside) > rank(s.folder())) {
					return s.folder() + " imports " + inside
				}
				return ""
			})
		},
		example: example{"cache/x.go", `package cache; import _ "github.com/fairlead/fairlead/server/xds"`},
	},
	{
		name:    "model needs the standard library only",
		why:     "the nouns belong to no library: whoever talks about a Service takes on no dependency",
		applies: func(s *source) bool { return s.under("translate/model") },
		find: func(s *source) []finding {
			return findImports(s, func(imported, _ string) string {
				if !strings.Contains(strings.Split(imported, "/")[0], ".") || within(imported, module+"/translate/model") || s.isTest() {
					return ""
				}
				return "imports " + imported
			})
		},
		example: example{"translate/model/x.go", `package model; import _ "k8s.io/api/core/v1"`},
	},
	{
		name:    "import aliases",
		why:     "one name for one package everywhere, so that core, cache and v1 never mean two things",
		applies: everywhere,
		find: func(s *source) []finding {
			return findImports(s, func(imported, alias string) string {
				if want, ok := aliasFor(imported, alias); !ok {
					return fmt.Sprintf("imports %s as %q, not as %s", imported, alias, want)
				}
				return ""
			})
		},
		example: example{"server/xds/x.go", `package xds; import corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"`},
	},
}

// aliasFor says how a package is to be called, and whether alias is that.
func aliasFor(imported, alias string) (want string, ok bool) {
	if alias == "_" {
		return "", true
	}
	const controlPlane = "github.com/envoyproxy/go-control-plane"
	switch {
	case within(imported, controlPlane+"/envoy"), within(imported, "github.com/cncf/xds/go"):
		return "a name that ends in pb", strings.HasSuffix(alias, "pb")
	case within(imported, controlPlane+"/pkg"):
		return "a name that starts with gcp", strings.HasPrefix(alias, "gcp")
	case imported == "k8s.io/client-go/tools/cache":
		return "kcache", alias == "kcache"
	case imported == "k8s.io/apimachinery/pkg/apis/meta/v1":
		return "metav1", alias == "metav1"
	case within(imported, "k8s.io/api"):
		want = path.Base(path.Dir(imported)) + path.Base(imported)
		return want, alias == want
	default:
		return "", true
	}
}

// findImports returns a finding for each import that judge has something to say about.
func findImports(s *source, judge func(imported, alias string) string) []finding {
	var found []finding
	s.imports(func(spec *ast.ImportSpec, imported, alias string) {
		if what := judge(imported, alias); what != "" {
			found = append(found, finding{s.line(spec), what})
		}
	})
	return found
}
