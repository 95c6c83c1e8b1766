package arch

import "go/ast"

func inTranslate(s *source) bool { return inProduct(s) && s.under("translate") }

var purityRules = []rule{
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
