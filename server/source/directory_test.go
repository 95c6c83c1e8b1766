package source

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fairlead/fairlead/translate/model"
)

// follower follows a source, as the control plane's translator does.
type follower struct {
	t       *testing.T
	queue   *Queue
	objects map[model.ObjectKey]model.Object
	synced  bool
}

// follow runs a source until the test ends.
func follow(t *testing.T, source interface {
	Run(context.Context, *Queue) error
}) *follower {
	t.Helper()
	f := &follower{t: t, queue: NewQueue(), objects: map[model.ObjectKey]model.Object{}}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- source.Run(ctx, f.queue) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return f
}

// until takes changes until a condition holds, and fails the test if that takes too long.
func (f *follower) until(what string, condition func() bool) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), 10*time.Second)
	defer cancel()
	for !condition() {
		b, err := f.queue.Take(ctx)
		if err != nil {
			f.t.Fatalf("waiting until %s: %v; now:\n%s", what, err, f)
		}
		f.synced = b.Synced
		for _, c := range b.Events {
			f.objects[c.Key] = c.Object
		}
	}
}

// ports returns the numbers of a Service's ports, nothing if it does not exist.
func (f *follower) ports(name string) []uint16 {
	s := f.objects[model.ObjectKey{Kind: model.KindService, Namespace: "default", Name: name}].Service
	if s == nil {
		return nil
	}
	var ports []uint16
	for _, p := range s.Ports {
		ports = append(ports, p.Port)
	}
	return ports
}

// has returns a condition: the Service has exactly this port, or does not exist if it is 0.
func (f *follower) has(name string, port uint16) func() bool {
	return func() bool {
		ports := f.ports(name)
		return port == 0 && len(ports) == 0 || len(ports) == 1 && ports[0] == port
	}
}

// problem returns a condition: something of a reason is wrong with a file, or nothing is if the reason is empty.
func (f *follower) problem(file string, reason model.Reason) func() bool {
	return func() bool {
		problems := f.objects[model.ObjectKey{Kind: KindSource, Name: file}].Problems
		return reason == "" && len(problems) == 0 || len(problems) > 0 && problems[0].Reason == reason
	}
}

func (f *follower) String() string {
	var s strings.Builder
	for key, o := range f.objects {
		s.WriteString(key.String())
		if o.Service != nil {
			s.WriteString(" is a Service")
		}
		for _, p := range o.Problems {
			s.WriteString("\n  " + string(p.Reason) + ": " + p.Message)
		}
		s.WriteString("\n")
	}
	return s.String()
}

// manifest of a Service with one port.
func manifestOf(name, port string) string {
	return `{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "` + name + `"}, "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": ` + port + `}]}}`
}

// write writes a file in place.
func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// replace puts a complete file in the place of another, as editors and kubectl's users do.
func replace(t *testing.T, path, content string) {
	t.Helper()
	temporary := filepath.Join(filepath.Dir(path), ".temporary")
	write(t, temporary, content)
	if err := os.Rename(temporary, path); err != nil {
		t.Fatal(err)
	}
}

// newFollower follows a folder with one manifest, web.yaml, of a Service web with port 80.
func newFollower(t *testing.T) (f *follower, folder, file string) {
	t.Helper()
	folder = t.TempDir()
	file = filepath.Join(folder, "web.yaml")
	write(t, file, manifestOf("web", "80"))
	f = follow(t, NewDirectory(DirectoryConfig{Paths: []string{folder}, Log: slog.New(slog.DiscardHandler)}))
	f.until("the manifest was read", func() bool { return f.synced && f.has("web", 80)() })
	return f, folder, file
}

func TestDirectoryFollowsChanges(t *testing.T) {
	f, folder, file := newFollower(t)

	replace(t, file, manifestOf("web", "81"))
	f.until("a file renamed into place counts", f.has("web", 81))

	write(t, file, manifestOf("web", "82"))
	f.until("a file written in place counts", f.has("web", 82))

	write(t, file, manifestOf("web", "83")+"\n---\n"+manifestOf("api", "90"))
	f.until("a second document counts", func() bool { return f.has("web", 83)() && f.has("api", 90)() })

	write(t, filepath.Join(folder, "more.json"), manifestOf("more", "100"))
	f.until("a new file counts", f.has("more", 100))

	write(t, file, manifestOf("web", "83"))
	f.until("what the file no longer describes is gone", f.has("api", 0))

	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	f.until("what a removed file described is gone", f.has("web", 0))
	if !f.has("more", 100)() {
		t.Errorf("another file's object is gone too:\n%s", f)
	}
}

func TestDirectoryKeepsWhatAHalfWrittenFileDescribed(t *testing.T) {
	whole := manifestOf("web", "81") + "\n---\n" + manifestOf("api", "91")
	for name, half := range map[string]string{
		"a part":                    whole[:len(whole)-20],
		"a complete document first": manifestOf("other", "99") + "\n---\n" + manifestOf("web", "81")[:30],
		"nothing":                   "",
		"another thing":             "<html>",
	} {
		t.Run(name, func(t *testing.T) {
			f, folder, file := newFollower(t)
			write(t, file, half)
			f.until("the file is a problem", func() bool { return !f.problem(file, "")() })
			if !f.has("web", 80)() || !f.has("other", 0)() {
				t.Errorf("a half-written file counts:\n%s", f)
			}
			write(t, filepath.Join(folder, "more.yaml"), manifestOf("more", "100"))
			f.until("other files count meanwhile", f.has("more", 100))
			if !f.has("web", 80)() {
				t.Errorf("the last good state of the file is gone:\n%s", f)
			}

			write(t, file, whole)
			f.until("the whole file counts", func() bool { return f.has("web", 81)() && f.has("api", 91)() })
			f.until("the problem is gone", f.problem(file, ""))
		})
	}
}

func TestDirectoryFollowsConfigMaps(t *testing.T) {
	// As the kubelet does: the files are links through ..data, which is renamed over.
	folder := t.TempDir()
	version := func(name, content string) {
		if err := os.Mkdir(filepath.Join(folder, name), 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(folder, name, "web.yaml"), content)
		if err := os.Symlink(name, filepath.Join(folder, "..data_tmp")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(folder, "..data_tmp"), filepath.Join(folder, "..data")); err != nil {
			t.Fatal(err)
		}
	}
	version("..2026_01", manifestOf("web", "80"))
	if err := os.Symlink("..data/web.yaml", filepath.Join(folder, "web.yaml")); err != nil {
		t.Fatal(err)
	}
	f := follow(t, NewDirectory(DirectoryConfig{Paths: []string{folder}, Log: slog.New(slog.DiscardHandler)}))
	f.until("the first version counts", f.has("web", 80))

	version("..2026_02", manifestOf("web", "81"))
	f.until("the second version counts", f.has("web", 81))
}

func TestDirectoryFollowsSingleFiles(t *testing.T) {
	folder := t.TempDir()
	file := filepath.Join(folder, "web.yaml")
	write(t, file, manifestOf("web", "80"))
	write(t, filepath.Join(folder, "other.yaml"), manifestOf("other", "90"))
	f := follow(t, NewDirectory(DirectoryConfig{Paths: []string{file}, Log: slog.New(slog.DiscardHandler)}))
	f.until("the file was read", f.has("web", 80))

	write(t, filepath.Join(folder, "other.yaml"), manifestOf("other", "91"))
	replace(t, file, manifestOf("web", "81"))
	f.until("the file was read again", f.has("web", 81))
	if !f.has("other", 0)() {
		t.Errorf("a file beside the one asked for counts:\n%s", f)
	}
}

func TestDirectoryCountsTheFirstOfTwoManifests(t *testing.T) {
	f, folder, file := newFollower(t)
	second := filepath.Join(folder, "zweb.yaml")
	write(t, second, manifestOf("web", "90"))
	f.until("the second is a problem", f.problem(second, model.DuplicateObject))
	if !f.has("web", 80)() {
		t.Errorf("the second counts:\n%s", f)
	}
	want := "Service default/web is described in " + file + " already, which counts; remove one of the two"
	if p := f.objects[sourceKey(second)].Problems[0]; p.Message != want || p.Object != second {
		t.Errorf("problem %+v, want %s: %s", p, second, want)
	}

	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	f.until("the second counts alone", f.has("web", 90))
	f.until("and is no problem any more", f.problem(second, ""))

	write(t, file, manifestOf("web", "80"))
	f.until("the first counts again", f.has("web", 80))
	f.until("and the second is a problem again", f.problem(second, model.DuplicateObject))
}

func TestDirectoryRescans(t *testing.T) {
	folder := t.TempDir()
	path := filepath.Join(folder, "manifests")
	build := func(to, port string) {
		if err := os.Mkdir(to, 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(to, "web.yaml"), manifestOf("web", port))
	}
	build(path, "80")
	d := NewDirectory(DirectoryConfig{Paths: []string{path}, RescanInterval: 20 * time.Millisecond, Log: slog.New(slog.DiscardHandler)})
	f := follow(t, d)
	f.until("the folder was read", f.has("web", 80))

	// Nothing in the folder itself changes when another takes its place.
	if err := os.Rename(path, path+".old"); err != nil {
		t.Fatal(err)
	}
	f.until("the missing folder is a problem", f.problem("manifests", model.Unreadable))
	if !f.has("web", 80)() {
		t.Errorf("what was in the missing folder is gone:\n%s", f)
	}
	build(path, "81")
	f.until("the new folder counts", f.has("web", 81))
	f.until("the problem is gone", f.problem("manifests", ""))

	write(t, filepath.Join(path, "api.yaml"), manifestOf("api", "90"))
	f.until("the new folder is followed", f.has("api", 90))
}

func TestDirectoryMustExist(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "missing")
	err := NewDirectory(DirectoryConfig{Paths: []string{missing}, Log: slog.New(slog.DiscardHandler)}).Run(t.Context(), NewQueue())
	if err == nil || !strings.Contains(err.Error(), missing) {
		t.Errorf("error %v, want one that names %s", err, missing)
	}
}
