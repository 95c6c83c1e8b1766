package arch

import (
	"fmt"
	"go/ast"
	"path"
	"slices"
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

// rooms says which packages of server a package of server imports, beside those below itself. The longest prefix counts.
var rooms = map[string][]string{
	"server/controlplane":   {"server/source", "server/xds", "server/identity", "server/ops/admin", "server/ops/explain", "server/ops/telemetry"},
	"server/identity":       {},
	"server/lab":            {},
	"server/lab/demo":       {"server/lab", "server/lab/fleet", "server/node", "server/source"},
	"server/lab/fleet":      {"server/lab", "server/node"},
	"server/node":           {"server/xds", "server/ops/admin", "server/ops/telemetry"},
	"server/node/dataplane": {"server/node/envoyns", "server/node/netevent"},
	"server/node/envoyns":   {"server/node/netevent"},
	"server/node/discovery": {}, "server/node/healthcheck": {}, "server/node/hostcheck": {"server/node/envoyns"}, "server/node/launcher": {}, "server/node/netevent": {}, "server/node/upstream": {},
	"server/ops/admin":     {},
	"server/ops/explain":   {},
	"server/ops/inspect":   {"server/controlplane/status", "server/ops/explain", "server/ops/offline", "server/ops/reach"},
	"server/ops/offline":   {"server/source"},
	"server/ops/reach":     {},
	"server/ops/telemetry": {},
	"server/source":        {},
	"server/xds":           {},
}

// room returns which packages of server a folder of server may import, and where that folder's room begins.
func room(folder string) (allowed []string, begins string) {
	for ; folder != "."; folder = path.Dir(folder) {
		if allowed, ok := rooms[folder]; ok {
			return allowed, folder
		}
	}
	return nil, "."
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
		name:    "the rooms of server",
		why:     "the control plane and the node meet in xDS alone, and each other part is used without those above it (see rooms, and the table in server/README.md)",
		applies: func(s *source) bool { return inProduct(s) && s.under("server") },
		find: func(s *source) []finding {
			allowed, begins := room(s.folder())
			return findImports(s, func(imported, _ string) string {
				inside, ok := strings.CutPrefix(imported, module+"/")
				if !ok || !within(inside, "server") || begins != "." && within(inside, begins) || slices.Contains(allowed, inside) {
					return ""
				}
				return s.folder() + " imports " + inside
			})
		},
		example: example{"server/node/upstream/x.go", `package upstream; import _ "github.com/fairlead/fairlead/server/controlplane"`},
	},
	{
		name: "lab is on no data path",
		why:  "what builds networks for demonstrations and tests must not be needed to forward a packet: of production code only the command demo imports it",
		applies: func(s *source) bool {
			return inProduct(s) && !s.under("server/lab") && s.path != "cmd/fairlead/demo.go"
		},
		find: func(s *source) []finding {
			return findImports(s, func(imported, _ string) string {
				if within(imported, module+"/server/lab") {
					return "imports " + imported
				}
				return ""
			})
		},
		example: example{"server/node/x.go", `package node; import _ "github.com/fairlead/fairlead/server/lab"`},
	},
	{
		name:    "packages are called as their folders",
		why:     "who reads a qualified name finds its folder",
		applies: func(s *source) bool { return inProduct(s) && s.file.Name.Name != "main" },
		find: func(s *source) []finding {
			if name := s.file.Name.Name; name != path.Base(s.folder()) {
				return []finding{{1, "package " + name + " in " + s.folder()}}
			}
			return nil
		},
		example: example{"server/x/x.go", `package y`},
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
