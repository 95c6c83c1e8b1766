// Command images builds the container images that the tests on real nodes run, with buildah and without a registry:
//
//	go -C test/e2e run ./images [-for node|conformance]
//
// Fairlead's own two are built by the commands of the README from the Containerfiles as they are. Base images that would be
// pulled are replaced under their own names: Debian by debootstrap, Go by this machine's toolchain, Envoy by
// .cache/envoy. The images end up as archives in .cache/e2e/images, each with a stamp, the hash of what it is made from,
// and are built again only when that has changed. It needs root, and what test/tools/setup.sh node installs.
package main

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// registry stands for REGISTRY of the README. Nothing is ever pulled from it.
const registry = "registry.test"

const (
	agnhost     = "registry.k8s.io/e2e-test-images/agnhost"
	conformance = "conformance"
)

// An image is built from the Containerfile of its kind beside this file, in a folder with the files that it copies.
type image struct {
	name    string
	kind    string
	files   map[string]string // By their names in the folder; relative ones are in .cache/e2e.
	prepare func(b *builder, folder string) error
	base    bool   // Nothing but other images needs it.
	purpose string // Empty: every purpose.
}

var images = []image{
	{name: "docker.io/library/debian:trixie-slim", kind: "debian", prepare: debootstrap, base: true},
	{name: "docker.io/library/golang:1.26", kind: "golang", prepare: toolchain, base: true},
	{name: "docker.io/envoyproxy/envoy:distroless-v1.40.0", kind: "envoy", prepare: envoyRoot, base: true},
	{name: registry + "/pause:1", kind: "pause", files: map[string]string{"web": "web"}},
	{name: registry + "/web:1", kind: "web", files: map[string]string{"web": "web"}},
	{name: registry + "/coredns:1", kind: "coredns", files: map[string]string{"coredns": "coredns"}},
	{name: registry + "/kube-proxy:1", kind: "kube-proxy", files: map[string]string{"kube-proxy": "kube-proxy"}},
	{name: agnhost + ":2.66.1", kind: "agnhost", files: map[string]string{"agnhost": "agnhost", "coredns": "coredns"}, prepare: porter},
	{name: agnhost + ":2.55", kind: "agnhost", files: map[string]string{"agnhost": "agnhost", "coredns": "coredns"}, prepare: porter, purpose: conformance},
	{name: "registry.k8s.io/pause:3.10.2", kind: "pause", files: map[string]string{"web": "web"}},
	{name: "registry.k8s.io/e2e-test-images/busybox:1.37.0-2", kind: "busybox", files: map[string]string{"busybox": "/bin/busybox"}},
	{name: "registry.k8s.io/e2e-test-images/nginx:1.27.0-2", kind: "nginx", purpose: conformance},
	{name: "registry.k8s.io/e2e-test-images/nginx:1.28.0-2", kind: "nginx", purpose: conformance},
	{name: "registry.k8s.io/e2e-test-images/glibc-dns-testing:2.1.1", kind: "glibc-dns-testing", purpose: conformance},
	{
		name: "registry.k8s.io/e2e-test-images/regression-issue-74839:1.5", kind: "regression-issue-74839", purpose: conformance,
		files: map[string]string{"regression-issue-74839": "regression-issue-74839"},
	},
}

func main() {
	log.SetFlags(0)
	purpose := flag.String("for", "node", "what the images are for: node or "+conformance)
	flag.Parse()
	if err := run(*purpose); err != nil {
		log.Fatalf("images: %v", err)
	}
}

func run(purpose string) error {
	if os.Geteuid() != 0 {
		return errors.New("building images needs root: run make as root")
	}
	root, err := filepath.Abs("../..")
	if err != nil {
		return err
	}
	cache, err := filepath.EvalSymlinks(filepath.Join(root, ".cache", "e2e"))
	if err != nil {
		return fmt.Errorf("programs: %w (go -C test/e2e run ./build builds them)", err)
	}
	b := &builder{root: root, cache: cache, out: filepath.Join(cache, "images")}
	if err := os.MkdirAll(b.out, 0o755); err != nil {
		return err
	}
	started := time.Now()
	for _, i := range images {
		if i.purpose != "" && i.purpose != purpose {
			continue
		}
		if err := b.ensure(i); err != nil {
			return fmt.Errorf("image %s: %w", i.name, err)
		}
	}
	if err := b.fairlead(); err != nil {
		return err
	}
	log.Printf("images: ready after %s, %d built; downloaded: %s", time.Since(started).Round(time.Second), b.built, b.downloads())
	return nil
}

// ensure builds an image unless it is there and made from the files as they are now.
func (b *builder) ensure(i image) error {
	inputs := []string{filepath.Join("images", i.kind+".Containerfile")}
	for _, source := range i.files {
		inputs = append(inputs, b.source(source))
	}
	if i.kind == "envoy" {
		inputs = append(inputs, b.envoy())
	}
	slices.Sort(inputs)
	want, err := hash(inputs)
	if err != nil {
		return err
	}
	return b.stamped(i.name, want, i.base, func() error {
		folder, err := os.MkdirTemp(b.out, "context-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(folder)
		for name, source := range i.files {
			if err := copyFile(b.source(source), filepath.Join(folder, name)); err != nil {
				return err
			}
		}
		if i.prepare != nil {
			if err := i.prepare(b, folder); err != nil {
				return err
			}
		}
		return b.bud("-f", filepath.Join("images", i.kind+".Containerfile"), "-t", i.name, folder)
	})
}

// source returns the path of a file that images are made of.
func (b *builder) source(name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(b.cache, name)
}

// stamped runs build unless the image's stamp says that it was built from the same, and writes the image's archive.
func (b *builder) stamped(name, want string, base bool, build func() error) error {
	archive := filepath.Join(b.out, strings.NewReplacer("/", "_", ":", "_").Replace(name)+".tar")
	stamp := archive + ".stamp"
	if got, err := os.ReadFile(stamp); err == nil && string(got) == want && b.has(name) {
		if _, err := os.Stat(archive); base || err == nil {
			return nil
		}
	}
	log.Printf("images: building %s", name)
	if err := errors.Join(os.RemoveAll(stamp), os.RemoveAll(archive), build()); err != nil {
		return err
	}
	b.built++
	if !base {
		if err := b.buildah("push", "-q", name, "docker-archive:"+archive+":"+name); err != nil {
			return err
		}
	}
	return os.WriteFile(stamp, []byte(want), 0o644)
}

// hash covers the contents of files, and of all files in folders.
func hash(paths []string) (string, error) {
	h := sha256.New()
	for _, p := range paths {
		err := filepath.WalkDir(p, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			f, err := os.Open(path)
			if err != nil {
				return err
			}
			defer f.Close()
			fmt.Fprintln(h, filepath.Base(path))
			_, err = io.Copy(h, f)
			return err
		})
		if err != nil {
			return "", err
		}
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

func copyFile(from, to string) error {
	source, err := os.Open(from)
	if err != nil {
		return err
	}
	defer source.Close()
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	target, err := os.OpenFile(to, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(target, source)
	return errors.Join(err, target.Close())
}
