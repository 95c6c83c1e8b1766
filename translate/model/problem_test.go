package model

import (
	"go/ast"
	"go/parser"
	"go/token"
	"slices"
	"testing"
)

// Reasons has every constant of the type: the compiler does not know that the list is closed.
func TestReasons(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "problem.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	ast.Inspect(file, func(node ast.Node) bool {
		spec, ok := node.(*ast.ValueSpec)
		if !ok || len(spec.Names) != 1 || len(spec.Values) != 1 {
			return true
		}
		if of, ok := spec.Type.(*ast.Ident); ok && of.Name == "Reason" {
			n++
			if !slices.Contains(Reasons, Reason(spec.Names[0].Name)) {
				t.Errorf("Reasons lacks %s", spec.Names[0].Name)
			}
		}
		return true
	})
	if n != len(Reasons) || n == 0 {
		t.Errorf("%d constants, %d Reasons", n, len(Reasons))
	}
}
