package arch

import (
	"go/ast"
	"slices"
)

// pureImports are what code under translate may use. None of them can read a clock, a file, a socket or a random number,
// except for package time, whose functions that can are forbidden by name.
var pureImports = []string{
	"bytes", "cmp", "encoding", "errors", "fmt", "hash", "io", "iter", "maps", "math/bits", "net/netip", "reflect", "regexp", "slices",
	"sort", "strconv", "strings", "time", "unicode", "unique",
	module + "/translate",
	"github.com/cncf/xds/go",
	"github.com/envoyproxy/go-control-plane/envoy", "github.com/envoyproxy/go-control-plane/pkg/resource", "github.com/envoyproxy/go-control-plane/pkg/wellknown",
	"google.golang.org/protobuf",
	"k8s.io/api", "k8s.io/apimachinery",
	"sigs.k8s.io/yaml",
}

func inTranslate(s *source) bool { return inProduct(s) && s.under("translate") }

var purityRules = []rule{
	{
		name:    "translate imports only pure packages",
		why:     "translate is a function of its input: the same objects give the same table on every machine, so it may use only packages without I/O, clock, chance or logs (see pureImports)",
		applies: inTranslate,
		find: func(s *source) []finding {
			return findImports(s, func(imported, _ string) string {
				if slices.ContainsFunc(pureImports, func(p string) bool { return within(imported, p) }) {
					return ""
				}
				return "imports " + imported
			})
		},
		example: example{"translate/x.go", `package translate; import _ "net/http"`},
	},
	{
		name:    "translate cannot tell the time",
		why:     "nothing under translate can tell what time it is; a time that matters is a field of its input",
		applies: inTranslate,
		find: func(s *source) []finding {
			return s.uses("time", "Now", "Since", "Until", "Sleep", "After", "AfterFunc", "Tick", "NewTicker", "NewTimer", "Local", "LoadLocation")
		},
		example: example{"translate/x.go", "package translate\nimport \"time\"\nvar now = time.Now()"},
	},
	{
		name:    "translate prints nothing",
		why:     "what translate has to say is in its result, as a Problem",
		applies: inTranslate,
		find: func(s *source) []finding {
			return s.uses("fmt", "Print", "Printf", "Println", "Scan", "Scanf", "Scanln")
		},
		example: example{"translate/x.go", "package translate\nimport \"fmt\"\nfunc f() { fmt.Println() }"},
	},
	{
		name:    "translate starts no goroutine",
		why:     "translate is called by the one owner of the world; concurrency in it would make its order of work, and so its bugs, a matter of chance",
		applies: inTranslate,
		find: func(s *source) []finding {
			return findNodes(s, func(n ast.Node) string {
				switch n.(type) {
				case *ast.GoStmt:
					return "a go statement"
				case *ast.SelectStmt:
					return "a select statement"
				case *ast.ChanType:
					return "a channel"
				}
				return ""
			})
		},
		example: example{"translate/x.go", `package translate; func f() { go f() }`},
	},
}

// findNodes returns a finding for each node of the file that judge has something to say about.
func findNodes(s *source, judge func(ast.Node) string) []finding {
	var found []finding
	ast.Inspect(s.file, func(n ast.Node) bool {
		if n == nil {
			return false
		}
		if what := judge(n); what != "" {
			found = append(found, finding{s.line(n), what})
		}
		return true
	})
	return found
}
