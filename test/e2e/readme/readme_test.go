package readme

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestCommands(t *testing.T) {
	file := filepath.Join(t.TempDir(), "README.md")
	text := "# Title\n\n## Install\n\nBuild:\n\n    first -a \\\n      --set b=c\n    second\n\nThen:\n\n    third &\n\n## Next\n\n    fourth\n"
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	got, err := Commands(file, "Install")
	want := []string{"first -a --set b=c", "second", "third &"}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%q, %v; want %q", got, err, want)
	}
	if _, err := Commands(file, "Missing"); err == nil {
		t.Error("a section that is not there has commands")
	}
}
