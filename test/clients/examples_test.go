package clients

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/fairlead/fairlead/server/lab"
)

const examples = "../../examples/grpc"

// readExample reads a manifest, every field of which must be one of Kubernetes'.
func readExample(t *testing.T, name string) corev1.PodSpec {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(examples, name))
	must(t, err)
	var d appsv1.Deployment
	must(t, yaml.UnmarshalStrict(text, &d))
	return d.Spec.Template.Spec
}

// TestExamplesSayTheSame: the bootstrap that kubectl alone puts into a pod is the one that the init container writes.
func TestExamplesSayTheSame(t *testing.T) {
	init := readExample(t, "init-container.yaml").InitContainers[0]
	var args []string
	for _, arg := range init.Args {
		if !strings.HasPrefix(arg, "--file=") {
			args = append(args, arg)
		}
	}
	cmd := exec.Command(os.Getenv(preparedVariable), args...)
	for _, e := range init.Env {
		cmd.Env = append(cmd.Env, e.Name+"=$("+e.Name+")") // As Kubernetes' own references in values are written.
	}
	written, err := cmd.Output()
	must(t, err)

	for _, e := range readExample(t, "patch.yaml").Containers[0].Env {
		if e.Name != "GRPC_XDS_BOOTSTRAP_CONFIG" {
			continue
		}
		if got, want := compact(t, []byte(e.Value)), compact(t, written); got != want {
			t.Errorf("patch.yaml has\n%s\nfairlead bootstrap grpc writes\n%s", got, want)
		}
		return
	}
	t.Error("patch.yaml sets no GRPC_XDS_BOOTSTRAP_CONFIG")
}

func compact(t *testing.T, text []byte) string {
	t.Helper()
	var b bytes.Buffer
	must(t, json.Compact(&b, text))
	return b.String()
}

// TestWalkThrough: the commands of the README's first part, run as they stand there in a pod with a copy of the checkout,
// print what it says. Fairlead itself is built already.
func TestWalkThrough(t *testing.T) {
	readme, err := os.ReadFile(filepath.Join(examples, "README.md"))
	must(t, err)
	steps := regexp.MustCompile("(?s)```sh\nmake build\n(.*?)```\n\n    (.*?)\n").FindSubmatch(readme)
	if steps == nil {
		t.Fatal("README.md has no walk-through")
	}
	l, err := lab.New()
	must(t, err)
	t.Cleanup(func() { must(t, l.Close()) })
	node, err := l.AddNode("n1", lab.Routed)
	must(t, err)
	pod, err := node.AddPod("clone", 0)
	must(t, err)
	dir := t.TempDir()
	runScript(t, pod, dir, "cd ../..; git ls-files -coz --exclude-standard | tar --create --null --files-from - | tar --extract --directory "+dir)
	must(t, os.Mkdir(filepath.Join(dir, "bin"), 0o755))
	must(t, os.Symlink(os.Getenv(preparedVariable), filepath.Join(dir, "bin/fairlead")))
	if got := runScript(t, pod, dir, "cd "+dir+"\n"+string(steps[1])); got != string(steps[2]) {
		t.Errorf("printed %s, want %s", got, steps[2])
	}
}

// runScript runs a script on a host, with its output in dir, and returns the last line of that. What the script leaves
// running ends with the test.
func runScript(t *testing.T, on *lab.Host, dir, script string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), buildPatience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-euo", "pipefail", "-c", script)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := os.Create(filepath.Join(dir, ".output")) // A pipe would stay open as long as anything runs.
	must(t, err)
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	must(t, on.Do(cmd.Start))
	t.Cleanup(func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }) // It fails when all has ended.
	err = cmd.Wait()
	text := strings.TrimSpace(logOf(out.Name()))
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return text[strings.LastIndexByte(text, '\n')+1:]
}

// buildPatience bounds a script that builds programs, on a machine that has built nothing yet.
const buildPatience = 10 * time.Minute
