package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/fairlead/fairlead/test/e2e/readme"
)

// A builder keeps its images in a store of its own, so that nothing of the machine's is touched.
type builder struct {
	root    string // The checkout.
	cache   string // .cache/e2e, with the programs.
	out     string // Archives, stamps and the store.
	built   int
	fetched []string // What apt says that it has downloaded.
}

func (b *builder) buildah(args ...string) error {
	_, err := b.output(args...)
	return err
}

// output runs buildah and returns what it printed.
func (b *builder) output(args ...string) (string, error) {
	store := []string{"--root", filepath.Join(b.out, "store"), "--runroot", filepath.Join(b.out, "store-run"), "--storage-driver", "overlay"}
	return b.run("buildah", append(store, args...)...)
}

func (b *builder) run(name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	// Of the ways to run a build's commands, chroot alone needs no namespaces and no runtime.
	cmd.Env = append(os.Environ(), "BUILDAH_ISOLATION=chroot", "DEBIAN_FRONTEND=noninteractive")
	err := cmd.Run()
	for _, m := range aptFetched.FindAllStringSubmatch(out.String(), -1) {
		b.fetched = append(b.fetched, m[1])
	}
	if err != nil {
		return "", fmt.Errorf("%s %s: %w:\n%s", name, strings.Join(args, " "), err, lastLines(out.String(), 15))
	}
	return out.String(), nil
}

var aptFetched = regexp.MustCompile(`Fetched ([0-9.,]+ [kMG]?B) in`)

func (b *builder) downloads() string {
	if len(b.fetched) == 0 {
		return "nothing"
	}
	return strings.Join(b.fetched, " + ")
}

func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// has says whether the store has an image.
func (b *builder) has(name string) bool {
	_, err := b.output("inspect", "--type", "image", name)
	return err == nil
}

// bud builds from a Containerfile with the machine's network and nothing pulled.
func (b *builder) bud(args ...string) error {
	return b.buildah(append([]string{"bud", "--pull-never", "--network", "host", "-q"}, args...)...)
}

// fairlead builds Fairlead's images by the README's commands: podman build is buildah bud, REGISTRY a name that nobody
// pulls from, and the Go toolchain finds the modules and results that this machine already has.
func (b *builder) fairlead() error {
	commands, err := readme.Commands(filepath.Join(b.root, "README.md"), "Install on a cluster")
	if err != nil {
		return err
	}
	var inputs []string
	for _, name := range []string{"go.mod", "go.sum", "cmd", "cache", "server", "translate", "deploy/container"} {
		inputs = append(inputs, filepath.Join(b.root, name))
	}
	want, err := hash(inputs)
	if err != nil {
		return err
	}
	found := 0
	for _, c := range commands {
		rest, ok := strings.CutPrefix(strings.ReplaceAll(c, "REGISTRY", registry), "podman build ")
		if !ok {
			continue
		}
		found++
		name, err := tagOf(rest)
		if err != nil {
			return err
		}
		if err := b.stamped(name, want, false, func() error { return b.buildHere(rest) }); err != nil {
			return fmt.Errorf("README's %q: %w", c, err)
		}
	}
	if found == 0 {
		return errors.New(`README's section "Install on a cluster" has no podman build`)
	}
	return nil
}

// tagOf returns the name that a build's arguments give to the image.
func tagOf(args string) (string, error) {
	_, rest, found := strings.Cut(args, "-t ")
	if !found {
		return "", fmt.Errorf("podman build %s names no image by -t", args)
	}
	name, _, _ := strings.Cut(rest, " ")
	return name, nil
}

// buildHere builds from the top of the checkout.
func (b *builder) buildHere(args string) error {
	flags := []string{"bud", "--pull-never", "--network", "host", "-q"}
	for variable, target := range map[string]string{"GOMODCACHE": "/go/pkg/mod", "GOCACHE": "/go/cache"} {
		value, err := b.run("go", "env", variable)
		if err != nil {
			return err
		}
		flags = append(flags, "-v", strings.TrimSpace(value)+":"+target)
	}
	words := strings.Fields(args)
	for i, w := range words {
		switch {
		case i > 0 && words[i-1] == "-f":
			words[i] = filepath.Join(b.root, w)
		case w == ".":
			words[i] = b.root
		}
	}
	// Modules are downloaded here, where the machine's certificates and proxies are known.
	if _, err := b.run("go", "-C", b.root, "mod", "download"); err != nil {
		return err
	}
	return b.buildah(append(flags, words...)...)
}
