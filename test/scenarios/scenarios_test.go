// Package scenarios says what Services mean, one text file per feature: manifests in, forwarding tables out.
//
// A file is a txtar archive. Its comment is a script, a command to the line; its files are manifests and expected
// tables:
//
//	apply FILE            add the objects of a file, or change those that are there
//	delete KIND NAME      remove an object; a name without a namespace is in default
//	endpoints NAME COUNT  add a Service's slices with COUNT endpoints
//	table NODE FILE       the node's table, as fairlead translate prints it, is FILE
//	json NODE FILE        the same with -o json
//	explain NAME NODE FILE  which endpoints of a Service the node uses, and why not the others
//	changed [NAME...]     since the last such line, exactly these Services may have changed
//	proxy NAME            from the start, Services labelled for this proxy are ours
//
// Every scenario runs several times, with the objects of each file in another order, and must always end in the same
// bytes. At every table it must also equal a world that starts with the objects as they are now, and a Service whose
// frontends differ on any node must have been reported as changed.
//
// To write the expected tables anew, run go test ./test/scenarios -update and read what changed.
package scenarios

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
)

var update = flag.Bool("update", false, "write the expected tables anew")

func TestScenarios(t *testing.T) {
	paths, err := filepath.Glob("*.txtar")
	if err != nil || len(paths) == 0 {
		t.Fatalf("found no scenarios: %v", err)
	}
	for _, path := range paths {
		t.Run(strings.TrimSuffix(path, ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if *update {
				t.Run("update", func(t *testing.T) { runScript(t, archive, orders[0], true) })
				if err := os.WriteFile(path, txtar.Format(archive), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			for _, o := range orders {
				t.Run(o.name, func(t *testing.T) { runScript(t, archive, o, false) })
			}
		})
	}
}

// runScript carries out a scenario's script.
func runScript(t *testing.T, archive *txtar.Archive, o order, write bool) {
	c := newCluster(t, o)
	used := map[string]bool{}
	expect := func(name, got string) {
		used[name] = true
		f := file(t, archive, name, write)
		if write {
			f.Data = []byte(got)
		}
		if diff := cmp.Diff(string(f.Data), got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	for i, line := range strings.Split(string(archive.Comment), "\n") {
		words := strings.Fields(line)
		if len(words) == 0 || strings.HasPrefix(words[0], "#") {
			continue
		}
		args := words[1:]
		switch command := fmt.Sprintf("%s %d", words[0], len(args)); {
		case command == "apply 1":
			used[args[0]] = true
			c.apply(args[0], file(t, archive, args[0], false).Data)
		case command == "delete 2":
			c.delete(args[0], args[1])
		case command == "endpoints 2":
			c.applyEndpoints(args[0], args[1])
		case command == "proxy 1":
			c.reader.ServiceProxyName = args[0]
		case words[0] == "changed":
			c.checkChanged(args)
		case command == "table 2":
			expect(args[1], c.table(args[0]).Text())
		case command == "json 2":
			expect(args[1], c.json(args[0]))
		case command == "explain 3":
			expect(args[2], c.explain(args[0], args[1]))
		default:
			t.Fatalf("line %d: %q is not a command", i+1, line)
		}
	}
	for _, f := range archive.Files {
		if !used[f.Name] {
			t.Errorf("the script never uses %s", f.Name)
		}
	}
}

// file returns a file of an archive; if asked to, a new one.
func file(t *testing.T, archive *txtar.Archive, name string, create bool) *txtar.File {
	t.Helper()
	for i := range archive.Files {
		if archive.Files[i].Name == name {
			return &archive.Files[i]
		}
	}
	if !create {
		t.Fatalf("there is no file %s", name)
	}
	archive.Files = append(archive.Files, txtar.File{Name: name})
	return &archive.Files[len(archive.Files)-1]
}
