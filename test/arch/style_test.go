package arch

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/token"
	"path"
	"slices"
	"strings"
)

// The sizes above which a file or function is hardly about one thing.
const (
	maxFileLines     = 300
	maxFunctionLines = 60
	maxArguments     = 4

	// A test has more to spell out than what it tests.
	maxTestFileLines     = 500
	maxTestFunctionLines = 80
)

// limit returns a size for production code, or that for tests.
func limit(s *source, production, test int) int {
	if s.isTest() {
		return test
	}
	return production
}

var callRules = []rule{
	{
		name:    "no sleeping by another name",
		why:     "a timer that nothing else is waited for beside is a sleep, which no context ends: put it in a select with the condition",
		applies: everywhere,
		find:    findLoneTimers,
		example: example{"cache/x_test.go", "package cache\nimport \"time\"\nfunc f() { select { case <-time.After(1): } }"},
	},
}

var shapeRules = []rule{
	{
		name:    "files are about one thing",
		why:     fmt.Sprintf("a file of more than %d lines (a test: %d) is about more than one thing: split it by its nouns", maxFileLines, maxTestFileLines),
		applies: everywhere,
		find: func(s *source) []finding {
			if n := bytes.Count(s.text, []byte("\n")); n > limit(s, maxFileLines, maxTestFileLines) {
				return []finding{{1, fmt.Sprintf("%d lines", n)}}
			}
			return nil
		},
		example: example{"cache/x.go", "package cache" + strings.Repeat("\n", maxFileLines+1)},
	},
	{
		name:    "functions fit on a screen",
		why:     fmt.Sprintf("a function of more than %d lines (a test: %d) does several things: give each a name", maxFunctionLines, maxTestFunctionLines),
		applies: everywhere,
		find: func(s *source) []finding {
			return findFunctions(s, func(f *ast.FuncDecl) string {
				if n := s.lines(f) - tableLines(s, f); n > limit(s, maxFunctionLines, maxTestFunctionLines) {
					return fmt.Sprintf("%s has %d lines", f.Name.Name, n)
				}
				return ""
			})
		},
		example: example{"cache/x.go", "package cache\nfunc f() {" + strings.Repeat("\n", maxFunctionLines) + "}"},
	},
	{
		name:    "constructors take a Config",
		why:     fmt.Sprintf("more than %d positional arguments are swapped by accident: take a Config struct", maxArguments),
		applies: inProduct,
		find: func(s *source) []finding {
			return findFunctions(s, func(f *ast.FuncDecl) string {
				if n := f.Type.Params.NumFields(); strings.HasPrefix(strings.ToLower(f.Name.Name), "new") && n > maxArguments {
					return fmt.Sprintf("%s takes %d arguments", f.Name.Name, n)
				}
				return ""
			})
		},
		example: example{"cache/x.go", `package cache; func New(a, b, c, d, e int) {}`},
	},
	{
		name:    "packages are named for what they provide",
		why:     "a package of odds and ends grows without a reader noticing: put the code beside its user",
		applies: everywhere,
		find: func(s *source) []finding {
			if name := path.Base(s.folder()); slices.Contains([]string{"util", "utils", "common", "helpers", "misc"}, name) {
				return []finding{{1, "a package " + name}}
			}
			return nil
		},
		example: example{"server/util/x.go", `package util`},
	},
	{
		name:    "exported names are documented",
		why:     "whoever reads an exported name is somewhere else: it says what it means, in which unit, and what it promises",
		applies: inProduct,
		find:    findUndocumented,
		example: example{"cache/x.go", `package cache; func New() {}`},
	},
}

// findFunctions returns a finding for each function or method that judge has something to say about.
func findFunctions(s *source, judge func(*ast.FuncDecl) string) []finding {
	return findNodes(s, func(n ast.Node) string {
		if f, ok := n.(*ast.FuncDecl); ok {
			return judge(f)
		}
		return ""
	})
}

// findLoneTimers returns where the file receives from time.After or time.Tick other than as one of several cases of a select.
func findLoneTimers(s *source) []finding {
	timers := map[int]bool{} // Lines that name one; a receive from it starts on the same line.
	for _, f := range s.uses("time", "After", "Tick") {
		timers[f.line] = true
	}
	among := map[ast.Node]bool{}
	ast.Inspect(s.file, func(n ast.Node) bool {
		choice, ok := n.(*ast.SelectStmt)
		if !ok || len(choice.Body.List) < 2 {
			return true
		}
		for _, clause := range choice.Body.List {
			if comm := clause.(*ast.CommClause).Comm; comm != nil {
				ast.Inspect(comm, func(n ast.Node) bool { among[n] = true; return true })
			}
		}
		return true
	})
	return findNodes(s, func(n ast.Node) string {
		receive, ok := n.(*ast.UnaryExpr)
		if !ok || receive.Op != token.ARROW || among[n] {
			return ""
		}
		if _, ok := receive.X.(*ast.CallExpr); ok && timers[s.line(n)] {
			return "a wait for a timer alone"
		}
		return ""
	})
}

// tableLines returns how many lines of a test are literals, such as the rows of its table: data, not steps.
func tableLines(s *source, f *ast.FuncDecl) int {
	if !s.isTest() {
		return 0
	}
	lines := 0
	ast.Inspect(f, func(n ast.Node) bool {
		literal, ok := n.(*ast.CompositeLit)
		if ok {
			lines += s.lines(literal) - 1
		}
		return !ok // A literal within a literal is counted already.
	})
	return lines
}

// findUndocumented returns the exported functions, methods of exported types, types, constants and variables that have no
// comment. A comment on a group speaks for its members.
func findUndocumented(s *source) []finding {
	var found []finding
	for _, declaration := range s.file.Decls {
		switch d := declaration.(type) {
		case *ast.FuncDecl:
			if d.Doc == nil && d.Name.IsExported() && exportedReceiver(d) {
				found = append(found, finding{s.line(d), d.Name.Name})
			}
		case *ast.GenDecl:
			for _, spec := range d.Specs {
				if name := undocumentedName(spec); name != "" && d.Doc == nil {
					found = append(found, finding{s.line(spec), name})
				}
			}
		}
	}
	return found
}

func exportedReceiver(f *ast.FuncDecl) bool {
	if f.Recv == nil {
		return true
	}
	receiver := f.Recv.List[0].Type
	if pointer, ok := receiver.(*ast.StarExpr); ok {
		receiver = pointer.X
	}
	if generic, ok := receiver.(*ast.IndexExpr); ok {
		receiver = generic.X
	}
	name, ok := receiver.(*ast.Ident)
	return ok && name.IsExported()
}

// undocumentedName returns the first exported name of a spec without a comment of its own.
func undocumentedName(spec ast.Spec) string {
	switch spec := spec.(type) {
	case *ast.TypeSpec:
		if spec.Doc == nil && spec.Comment == nil && spec.Name.IsExported() {
			return spec.Name.Name
		}
	case *ast.ValueSpec:
		if spec.Doc == nil && spec.Comment == nil && spec.Names[0].IsExported() {
			return spec.Names[0].Name
		}
	}
	return ""
}
