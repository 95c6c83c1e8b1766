package node

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
)

// A socket replaces an earlier agent's, is for its user alone, and is all that is left in its folder.
func TestListen(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "x.sock")
	for range 2 {
		l, err := listen(path, os.Getuid())
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("mode %v, %v", info.Mode(), err)
		}
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		accepted, err := l.Accept()
		if err := errors.Join(err, conn.Close(), accepted.Close()); err != nil {
			t.Error(err)
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("left in the folder: %v, %v", entries, err)
	}
}
