package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// debootstrap makes Debian's smallest system, as the official slim image is made.
func debootstrap(b *builder, folder string) error {
	system := filepath.Join(folder, "debian")
	if _, err := b.run("debootstrap", "--variant=minbase", "--include=ca-certificates", "trixie", system); err != nil {
		return err
	}
	packages, err := filepath.Glob(filepath.Join(system, "var/cache/apt/archives/*.deb"))
	if err != nil {
		return err
	}
	size := int64(0)
	for _, p := range packages {
		info, err := os.Stat(p)
		if err != nil {
			return err
		}
		size += info.Size()
	}
	b.fetched = append(b.fetched, fmt.Sprintf("%d MB", size/1_000_000))
	_, err = b.run("tar", "-C", system, "--exclude=./var/cache/apt/archives/*.deb", "--exclude=./var/lib/apt/lists/*", "-cf", filepath.Join(folder, "debian.tar"), ".")
	return err
}

// toolchain copies the Go that runs this.
func toolchain(b *builder, folder string) error {
	root, err := b.run("go", "env", "GOROOT")
	if err != nil {
		return err
	}
	_, err = b.run("cp", "-rL", strings.TrimSpace(root), filepath.Join(folder, "go"))
	return err
}

// envoy returns the path of the Envoy that test/tools/setup.sh has put in place.
func (b *builder) envoy() string { return filepath.Join(filepath.Dir(b.cache), "envoy", "envoy") }

// library matches a line of ldd's output.
var library = regexp.MustCompile(`(/\S+) \(0x`)

// envoyRoot makes a root file system of Envoy, its libraries and a user.
func envoyRoot(b *builder, folder string) error {
	root := filepath.Join(folder, "root")
	out, err := b.run("ldd", b.envoy())
	if err != nil {
		return err
	}
	files := map[string]string{b.envoy(): "usr/local/bin/envoy"}
	for _, m := range library.FindAllStringSubmatch(out, -1) {
		files[m[1]] = m[1]
	}
	for from, to := range files {
		if err := copyFile(from, filepath.Join(root, to)); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(filepath.Join(root, "tmp"), 0o777); err != nil {
		return err
	}
	users := "root:x:0:0:root:/:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/:/sbin/nologin\n"
	if err := os.MkdirAll(filepath.Join(root, "etc"), 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(root, "etc/passwd"), []byte(users), 0o644)
}

// porter adds the certificate that agnhost's porter serves with.
func porter(b *builder, folder string) error {
	dir, err := b.run("go", "-C", "kube", "list", "-m", "-f", "{{.Dir}}", "k8s.io/kubernetes")
	if err != nil {
		return err
	}
	for _, name := range []string{"localhost.crt", "localhost.key"} {
		from := filepath.Join(strings.TrimSpace(dir), "test/images/agnhost/porter", name)
		if err := copyFile(from, filepath.Join(folder, "porter", name)); err != nil {
			return err
		}
	}
	return nil
}
