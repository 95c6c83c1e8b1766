package packets

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// difference is something that Fairlead means to do in another way than kube-proxy, as far as packets show it.
type difference struct {
	row      string // How its row in translate/README.md begins.
	explains func(c cell, theirs, ours string) bool
}

var differences = []difference{}

// explain returns the difference that a cell shows, nil if none is known.
func explain(c cell, theirs, ours string) *difference {
	for i := range differences {
		if d := &differences[i]; d.explains(c, theirs, ours) {
			return d
		}
	}
	return nil
}

// Whoever looks up a difference finds its reason.
func TestDifferencesAreWrittenDown(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "..", "translate", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range differences {
		if !strings.Contains(string(text), "\n| "+d.row) {
			t.Errorf("translate/README.md has no row that begins with %q", d.row)
		}
	}
}
