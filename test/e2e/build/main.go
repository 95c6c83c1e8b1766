// Command build compiles what the end-to-end tests run: etcd, kube-apiserver, kube-controller-manager, kubectl,
// CoreDNS, Helm, an OpenTelemetry collector and Fairlead itself.
//
//	go -C test/e2e run ./build
//
// The binaries go to .cache/e2e at the top of the checkout. Kubernetes and CoreDNS take minutes to compile, so each of
// their modules leaves a stamp, the hash of its own files, and is compiled again only when that has changed.
package main

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// module is a Go module beside this folder and the programs that are built from it.
type module struct {
	dir      string
	packages []string
	version  string // The module whose version the programs report through k8s.io/component-base; may be empty.
}

var modules = []module{
	{
		dir: "kube",
		packages: []string{
			"k8s.io/kubernetes/cmd/kube-apiserver",
			"k8s.io/kubernetes/cmd/kube-controller-manager",
			"k8s.io/kubernetes/cmd/kubectl",
			"./etcd",
		},
		version: "k8s.io/kubernetes",
	},
	{dir: "coredns", packages: []string{"."}},
	{dir: "collector", packages: []string{"."}},
	{dir: "helm", packages: []string{"helm.sh/helm/v4/cmd/helm"}},
}

func main() {
	log.SetFlags(0)
	if err := run(); err != nil {
		log.Fatalf("build: %v", err)
	}
}

func run() error {
	root, err := filepath.Abs("../..")
	if err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(root, "cmd", "fairlead")); err != nil {
		return fmt.Errorf("not in test/e2e of a Fairlead checkout (use go -C test/e2e run ./build): %w", err)
	}
	out := filepath.Join(root, ".cache", "e2e")
	for _, m := range modules {
		if err := m.ensure(out); err != nil {
			return fmt.Errorf("module %s: %w", m.dir, err)
		}
	}
	if err := compile("container", "-o", filepath.Join(out, "container"), "."); err != nil {
		return err
	}
	return compile(root, "-o", filepath.Join(out, "fairlead"), "./cmd/fairlead")
}

// ensure builds m's programs into out unless they are there and made from the files as they are now.
func (m module) ensure(out string) error {
	want, err := hash(m.dir)
	if err != nil {
		return err
	}
	stamp := filepath.Join(out, m.dir+".stamp")
	if got, err := os.ReadFile(stamp); err == nil && string(got) == want && m.built(out) {
		return nil
	}
	log.Printf("building %s into %s (minutes, the first time)", strings.Join(m.names(), ", "), out)
	started := time.Now()
	flags, err := m.linkerFlags()
	if err != nil {
		return err
	}
	args := append([]string{"-trimpath", "-ldflags", flags, "-o", out + string(filepath.Separator)}, m.packages...)
	if err := compile(m.dir, args...); err != nil {
		return err
	}
	log.Printf("built in %s", time.Since(started).Round(time.Second))
	return os.WriteFile(stamp, []byte(want), 0o644)
}

// names returns the names of the programs' files.
func (m module) names() []string {
	var names []string
	for _, p := range m.packages {
		if p == "." {
			p = m.dir
		}
		names = append(names, filepath.Base(p))
	}
	return names
}

func (m module) built(out string) bool {
	for _, name := range m.names() {
		if _, err := os.Stat(filepath.Join(out, name)); err != nil {
			return false
		}
	}
	return true
}

// linkerFlags drops symbols and sets the version that Kubernetes' programs report: a module's build cannot know it.
func (m module) linkerFlags() (string, error) {
	const flags = "-s -w"
	if m.version == "" {
		return flags, nil
	}
	list := exec.Command("go", "list", "-m", "-f", "{{.Version}}", m.version)
	list.Dir, list.Stderr = m.dir, os.Stderr
	version, err := list.Output()
	if err != nil {
		return "", fmt.Errorf("version of %s: %w", m.version, err)
	}
	v := strings.TrimSpace(string(version))
	major, rest, _ := strings.Cut(strings.TrimPrefix(v, "v"), ".")
	minor, _, _ := strings.Cut(rest, ".")
	const pkg = "k8s.io/component-base/version."
	return fmt.Sprintf("%s -X %sgitVersion=%s -X %sgitMajor=%s -X %sgitMinor=%s", flags, pkg, v, pkg, major, pkg, minor), nil
}

// compile runs go build in dir. Without cgo no C compiler is needed and the programs run anywhere.
func compile(dir string, args ...string) error {
	build := exec.Command("go", append([]string{"build"}, args...)...)
	build.Dir, build.Stdout, build.Stderr = dir, os.Stdout, os.Stderr
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if err := build.Run(); err != nil {
		return fmt.Errorf("go build %s: %w", strings.Join(args, " "), err)
	}
	return nil
}

// hash covers the Go version and every file of the module in dir.
func hash(dir string) (string, error) {
	h := sha256.New()
	fmt.Fprintln(h, runtime.Version())
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		fmt.Fprintf(h, "%s %d\n", path, len(content))
		_, err = h.Write(content)
		return err
	})
	return hex.EncodeToString(h.Sum(nil)), err
}
