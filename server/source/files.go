package source

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
)

// Stdin is the path that stands for standard input.
const Stdin = "-"

// manifestSuffixes are the files of a folder that are read, as kubectl does.
var manifestSuffixes = []string{".yaml", ".yml", ".json"}

// manifestFile is one file to read.
type manifestFile struct {
	path  string
	named bool // By the caller, who gets an error when it cannot be read.
}

// expandPaths returns what paths stand for once patterns that the shell left alone, such as quoted ones, are resolved as
// kubectl does. What exists under its own name is no pattern.
func expandPaths(paths []string) ([]string, error) {
	var all []string
	for _, path := range paths {
		if _, err := os.Lstat(path); path == Stdin || err == nil || !strings.ContainsAny(path, "*?[") {
			all = append(all, path)
			continue
		}
		matches, err := filepath.Glob(path)
		if err != nil {
			return nil, fmt.Errorf("read manifests: pattern %q: %w", path, err)
		}
		if len(matches) == 0 {
			return nil, fmt.Errorf("read manifests: no file matches the pattern %q", path)
		}
		all = append(all, matches...)
	}
	return all, nil
}

// manifestFiles returns the files that paths stand for, each once, in order.
func manifestFiles(paths []string) ([]manifestFile, error) {
	var files []manifestFile
	for _, path := range paths {
		if path == Stdin {
			files = append(files, manifestFile{path, true})
			continue
		}
		path = filepath.Clean(path)
		info, err := os.Stat(path)
		if err != nil {
			return nil, fmt.Errorf("read manifests: %w", err)
		}
		if !info.IsDir() {
			files = append(files, manifestFile{path, true})
			continue
		}
		entries, err := os.ReadDir(path)
		if err != nil {
			return nil, fmt.Errorf("read manifests: %w", err)
		}
		for _, e := range entries {
			if isManifest(e.Name()) {
				files = append(files, manifestFile{path: filepath.Join(path, e.Name())})
			}
		}
	}
	slices.SortStableFunc(files, func(a, b manifestFile) int { return strings.Compare(a.path, b.path) })
	return slices.CompactFunc(files, func(a, b manifestFile) bool { return a.path == b.path }), nil
}

// isManifest reports whether a folder's entry is a manifest. Hidden files are an editor's, or a ConfigMap volume's own.
func isManifest(name string) bool {
	return !strings.HasPrefix(name, ".") && slices.Contains(manifestSuffixes, filepath.Ext(name))
}

// readManifest returns a file's bytes. Its error is fs.ErrNotExist only if nothing of that name exists: a dangling
// symbolic link was meant to be a manifest.
func readManifest(path string) ([]byte, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if target, linkErr := os.Readlink(path); linkErr == nil {
			return nil, fmt.Errorf("the symbolic link leads to %s, which does not exist; correct or remove it", target)
		}
	}
	return data, err
}

// each calls do for every number below n, on all cores, and returns when all are done.
func each(n int, do func(int)) {
	var next atomic.Int64
	var workers sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), n) {
		workers.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				do(i)
			}
		})
	}
	workers.Wait()
}
