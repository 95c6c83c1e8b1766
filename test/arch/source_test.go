// Package arch proves the laws that neither the compiler nor a linter knows: which folder may import which, what pure code
// may not do, and the house style as far as a program can judge it. In: the checkout's files. Out: a failure for each place
// that breaks a rule, with the rule's reason. It never builds or runs what it reads.
package arch

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
)

const (
	root   = "../.."
	module = "github.com/fairlead/fairlead"
)

// A source is one parsed Go file of the checkout.
type source struct {
	path string // Relative to the checkout, with slashes.
	text []byte
	set  *token.FileSet
	file *ast.File
}

func parse(name string, text []byte) (*source, error) {
	set := token.NewFileSet()
	file, err := parser.ParseFile(set, name, text, parser.ParseComments)
	if err != nil {
		return nil, err
	}
	return &source{path: name, text: text, set: set, file: file}, nil
}

func (s *source) folder() string  { return path.Dir(s.path) }
func (s *source) isTest() bool    { return strings.HasSuffix(s.path, "_test.go") || s.under("test") }
func (s *source) generated() bool { return ast.IsGenerated(s.file) }

// under says whether the file is in the folder or below it.
func (s *source) under(folder string) bool { return within(s.path, folder) }

func (s *source) line(n ast.Node) int { return s.set.Position(n.Pos()).Line }

// lines returns how many lines a node spans.
func (s *source) lines(n ast.Node) int { return s.set.Position(n.End()).Line - s.line(n) + 1 }

// imports calls visit for each import with its path and the name given to it there, if any.
func (s *source) imports(visit func(spec *ast.ImportSpec, importPath, alias string)) {
	for _, spec := range s.file.Imports {
		importPath, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			continue // The parser accepts only quoted strings.
		}
		alias := ""
		if spec.Name != nil {
			alias = spec.Name.Name
		}
		visit(spec, importPath, alias)
	}
}

// uses returns where the file names one of a package's functions or variables; of nil names, any of them.
func (s *source) uses(importPath string, names ...string) []finding {
	local := ""
	s.imports(func(_ *ast.ImportSpec, p, alias string) {
		if p == importPath {
			local = alias
			if alias == "" {
				local = path.Base(p)
			}
		}
	})
	var found []finding
	if local == "" {
		return nil
	}
	ast.Inspect(s.file, func(n ast.Node) bool {
		selector, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		// An identifier with an Obj is a variable of the file that shadows the package.
		if x, ok := selector.X.(*ast.Ident); !ok || x.Name != local || x.Obj != nil {
			return true
		}
		for _, name := range names {
			if selector.Sel.Name == name {
				found = append(found, finding{s.line(n), local + "." + name})
			}
		}
		return true
	})
	return found
}

func within(name, folder string) bool { return name == folder || strings.HasPrefix(name, folder+"/") }

// files returns every file of the checkout that is or could be committed, by path.
var files = sync.OnceValues(func() (map[string][]byte, error) {
	all := map[string][]byte{}
	err := filepath.WalkDir(root, func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		relative = filepath.ToSlash(relative)
		if entry.IsDir() {
			if built[relative] {
				return filepath.SkipDir
			}
			return nil
		}
		if !entry.Type().IsRegular() {
			return nil
		}
		all[relative], err = os.ReadFile(name)
		return err
	})
	return all, err
})

// built are the folders at the top that are not part of the project.
var built = map[string]bool{".git": true, "bin": true, ".cache": true}

// texts returns the files that are text for people to read: all but binaries, sums and the licence.
func texts(t *testing.T) map[string][]byte {
	t.Helper()
	all, err := files()
	if err != nil {
		t.Fatal(err)
	}
	some := map[string][]byte{}
	for name, text := range all {
		if name != "LICENSE" && path.Base(name) != "go.sum" && !bytes.ContainsRune(text, 0) {
			some[name] = text
		}
	}
	return some
}

// sources returns every Go file of the checkout.
func sources(t *testing.T) []*source {
	t.Helper()
	var parsed []*source
	for name, text := range texts(t) {
		if path.Ext(name) != ".go" {
			continue
		}
		s, err := parse(name, text)
		if err != nil {
			t.Errorf("%v", err)
			continue
		}
		parsed = append(parsed, s)
	}
	return parsed
}
