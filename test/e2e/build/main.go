// Command build compiles what the end-to-end tests run: etcd, kube-apiserver, kube-controller-manager, kubectl,
// CoreDNS, Helm, an OpenTelemetry collector and Fairlead itself; for real nodes also kube-scheduler, kubelet, kube-proxy
// and agnhost; for conformance Kubernetes' own tests as well; for networks also flannel, kube-router and the oldest Kubernetes.
//
//	go -C test/e2e run ./build [-for e2e|node|conformance|networks]
//
// The binaries go to .cache/e2e at the top of the checkout. Kubernetes and CoreDNS take minutes to compile, so each set
// of programs leaves a stamp, the hash of its module's own files, and is compiled again only when that has changed.
package main

import (
	"crypto/sha256"
	"encoding/hex"
	"flag"
	"fmt"
	"io/fs"
	"log"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

// programs are what is built from a Go module beside this folder.
type programs struct {
	name     string // Of the stamp.
	dir      string
	folder   string // Below .cache/e2e; may be empty.
	packages []string
	test     string // A package whose tests become the program e2e.test; may be empty.
	version  string // The module whose version the programs report through k8s.io/component-base; may be empty.
	purpose  string // One of needs.
}

// needs are what the programs may be for, with the purposes whose programs that needs.
var needs = map[string][]string{
	"e2e":         {"e2e"},
	"node":        {"e2e", "node"},
	"conformance": {"e2e", "node", "conformance"},
	"networks":    {"e2e", "node", "networks"},
}

var all = []programs{
	{
		name: "kube", dir: "kube", version: "k8s.io/kubernetes", purpose: "e2e",
		packages: []string{
			"k8s.io/kubernetes/cmd/kube-apiserver",
			"k8s.io/kubernetes/cmd/kube-controller-manager",
			"k8s.io/kubernetes/cmd/kubectl",
			"./etcd",
		},
	},
	{name: "coredns", dir: "coredns", packages: []string{"."}, purpose: "e2e"},
	{name: "collector", dir: "collector", packages: []string{"."}, purpose: "e2e"},
	{name: "helm", dir: "helm", packages: []string{"helm.sh/helm/v4/cmd/helm"}, purpose: "e2e"},
	{
		name: "node", dir: "kube", version: "k8s.io/kubernetes", purpose: "node",
		packages: []string{
			"k8s.io/kubernetes/cmd/kube-scheduler",
			"k8s.io/kubernetes/cmd/kubelet",
			"k8s.io/kubernetes/cmd/kube-proxy",
			"k8s.io/kubernetes/test/images/agnhost",
		},
	},
	{
		name: "conformance", dir: "kube", version: "k8s.io/kubernetes", purpose: "conformance",
		packages: []string{"github.com/onsi/ginkgo/v2/ginkgo", "k8s.io/kubernetes/test/images/regression-issue-74839"}, test: "./network",
	},
	{name: "flannel", dir: "flannel", packages: []string{"."}, purpose: "networks"},
	{name: "kube-router", dir: "kube-router", packages: []string{"github.com/cloudnativelabs/kube-router/v2/cmd/kube-router"}, purpose: "networks"},
	{
		name: "oldest", dir: "oldest", folder: "oldest", version: "k8s.io/kubernetes", purpose: "networks",
		packages: []string{
			"k8s.io/kubernetes/cmd/kube-apiserver",
			"k8s.io/kubernetes/cmd/kube-controller-manager",
			"k8s.io/kubernetes/cmd/kube-scheduler",
			"k8s.io/kubernetes/cmd/kubelet",
			"k8s.io/kubernetes/cmd/kubectl",
		},
	},
}

func main() {
	log.SetFlags(0)
	purpose := flag.String("for", "e2e", "what the programs are for: "+strings.Join(slices.Sorted(maps.Keys(needs)), ", "))
	flag.Parse()
	if err := run(*purpose); err != nil {
		log.Fatalf("build: %v", err)
	}
}

func run(purpose string) error {
	wanted, ok := needs[purpose]
	if !ok {
		return fmt.Errorf("-for %s: want one of %s", purpose, strings.Join(slices.Sorted(maps.Keys(needs)), ", "))
	}
	root, err := filepath.Abs("../..")
	if err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(root, "cmd", "fairlead")); err != nil {
		return fmt.Errorf("not in test/e2e of a Fairlead checkout (use go -C test/e2e run ./build): %w", err)
	}
	out := filepath.Join(root, ".cache", "e2e")
	for _, p := range all {
		if !slices.Contains(wanted, p.purpose) {
			continue
		}
		if err := p.ensure(out); err != nil {
			return fmt.Errorf("module %s: %w", p.dir, err)
		}
	}
	for _, own := range []struct{ dir, pkg string }{{".", "./container"}, {".", "./web"}, {root, "./cmd/fairlead"}} {
		if err := compile(own.dir, "build", "-trimpath", "-o", out+string(filepath.Separator), own.pkg); err != nil {
			return err
		}
	}
	return nil
}

// ensure builds p into out unless all of it is there and made from the files as they are now.
func (p programs) ensure(out string) error {
	want, err := hash(p.dir)
	if err != nil {
		return err
	}
	stamp := filepath.Join(out, p.name+".stamp")
	out = filepath.Join(out, p.folder)
	if got, err := os.ReadFile(stamp); err == nil && string(got) == want && p.built(out) {
		return nil
	}
	log.Printf("building %s into %s (minutes, the first time)", strings.Join(p.names(), ", "), out)
	started := time.Now()
	flags, err := p.linkerFlags()
	if err != nil {
		return err
	}
	args := append([]string{"build", "-trimpath", "-ldflags", flags, "-o", out + string(filepath.Separator)}, p.packages...)
	if err := compile(p.dir, args...); err != nil {
		return err
	}
	if p.test != "" {
		if err := compile(p.dir, "test", "-c", "-trimpath", "-ldflags", flags, "-o", filepath.Join(out, testProgram), p.test); err != nil {
			return err
		}
	}
	log.Printf("built in %s", time.Since(started).Round(time.Second))
	return os.WriteFile(stamp, []byte(want), 0o644)
}

// testProgram is what Kubernetes calls its own tests.
const testProgram = "e2e.test"

// names returns the names of the programs' files.
func (p programs) names() []string {
	var names []string
	for _, pkg := range p.packages {
		if pkg == "." {
			pkg = p.dir
		}
		names = append(names, filepath.Base(pkg))
	}
	if p.test != "" {
		names = append(names, testProgram)
	}
	return names
}

func (p programs) built(out string) bool {
	for _, name := range p.names() {
		if _, err := os.Stat(filepath.Join(out, name)); err != nil {
			return false
		}
	}
	return true
}

// linkerFlags drops symbols and sets the version that Kubernetes' programs report: a module's build cannot know it.
func (p programs) linkerFlags() (string, error) {
	const flags = "-s -w"
	if p.version == "" {
		return flags, nil
	}
	list := exec.Command("go", "list", "-m", "-f", "{{.Version}}", p.version)
	list.Dir, list.Stderr = p.dir, os.Stderr
	version, err := list.Output()
	if err != nil {
		return "", fmt.Errorf("version of %s: %w", p.version, err)
	}
	v := strings.TrimSpace(string(version))
	major, rest, _ := strings.Cut(strings.TrimPrefix(v, "v"), ".")
	minor, _, _ := strings.Cut(rest, ".")
	const pkg = "k8s.io/component-base/version."
	return fmt.Sprintf("%s -X %sgitVersion=%s -X %sgitMajor=%s -X %sgitMinor=%s", flags, pkg, v, pkg, major, pkg, minor), nil
}

// compile runs the go command in dir. Without cgo no C compiler is needed and the programs run anywhere.
func compile(dir string, args ...string) error {
	build := exec.Command("go", args...)
	build.Dir, build.Stdout, build.Stderr = dir, os.Stdout, os.Stderr
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if err := build.Run(); err != nil {
		return fmt.Errorf("go %s: %w", strings.Join(args, " "), err)
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
