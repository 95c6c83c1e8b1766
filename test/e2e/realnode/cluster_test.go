package realnode

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/server/lab"
	"github.com/fairlead/fairlead/test/e2e/realnode/machine"
)

// cluster is a control plane, nodes, and a host outside that has no route to pods or Services.
type cluster struct {
	root     string // The checkout.
	programs string // What ./build has built.
	dir      string // The nodes' disks, logs and keys.
	run      string // Unique among runs, in the names of what a killed run leaves behind.
	network  network

	lab     *lab.Lab
	nodes   []*node
	outside *lab.Host
	kube    *controlPlane
}

// newCluster starts a cluster with n nodes and CoreDNS, for the time of the test. Nothing forwards for Services yet.
func newCluster(t *testing.T, n int, network network) *cluster {
	t.Helper()
	c, err := openCluster(network)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.close(t.Failed()) })
	started := time.Now()
	if c.lab, err = lab.New(); err != nil {
		t.Fatal(err)
	}
	if c.outside, err = c.lab.AddOutside("outside"); err != nil {
		t.Fatal(err)
	}
	if err := c.startControlPlane(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		if err := c.addNode(t.Context(), fmt.Sprintf("n%d", i+1)); err != nil {
			t.Fatalf("%v; logs are in %s", err, c.dir)
		}
	}
	for _, m := range c.nodes {
		if err := m.ready(t.Context()); err != nil {
			t.Fatalf("%v; logs are in %s", err, c.dir)
		}
	}
	t.Logf("control plane and %d nodes, %s: ready after %s", n, network.name, time.Since(started).Round(time.Second))
	return c
}

// openCluster makes the run's folder, after it has cleared away what killed runs have left.
func openCluster(network network) (*cluster, error) {
	root, err := filepath.Abs("../../..")
	if err != nil {
		return nil, err
	}
	programs, err := filepath.EvalSymlinks(filepath.Join(root, ".cache", "e2e"))
	if err != nil {
		return nil, fmt.Errorf("programs: %w (make e2e-node builds them)", err)
	}
	runs := filepath.Join(programs, "realnode")
	if *dir != "" {
		runs = *dir
	}
	if err := errors.Join(os.MkdirAll(runs, 0o755), clearStale(runs)); err != nil {
		return nil, err
	}
	folder, err := os.MkdirTemp(runs, "run-")
	if err != nil {
		return nil, err
	}
	if _, err := lock(folder); err != nil {
		return nil, err
	}
	return &cluster{root: root, programs: programs, dir: folder, run: "fairlead-" + filepath.Base(folder), network: network}, nil
}

// lock marks a run's folder as in use, as long as this process lives: the file is never closed.
func lock(folder string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(folder, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// clearStale removes the folders and control groups of runs that have ended. The kernel has ended all else of them.
func clearStale(runs string) error {
	folders, err := filepath.Glob(filepath.Join(runs, "run-*"))
	if err != nil {
		return err
	}
	for _, folder := range folders {
		f, err := lock(folder)
		if errors.Is(err, unix.EWOULDBLOCK) {
			continue
		}
		if err != nil {
			return err
		}
		disks, err := filepath.Glob(filepath.Join(folder, "disk-*"))
		if err != nil {
			return err
		}
		for _, d := range disks {
			node := strings.TrimPrefix(filepath.Base(d), "disk-")
			if err := machine.RemoveCgroup("fairlead-" + filepath.Base(folder) + "-" + node); err != nil {
				return fmt.Errorf("left by an earlier run: %w", err)
			}
		}
		if err := errors.Join(os.RemoveAll(folder), f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// close ends everything. The logs stay when a test has failed, until the next run.
func (c *cluster) close(failed bool) {
	var errs []error
	for _, n := range c.nodes {
		errs = append(errs, n.off())
	}
	if c.lab != nil {
		errs = append(errs, c.lab.Close())
	}
	if !failed {
		errs = append(errs, os.RemoveAll(c.dir))
	} else {
		fmt.Fprintf(os.Stderr, "realnode: logs are in %s\n", c.dir)
		errs = append(errs, c.removeDisks())
	}
	if err := errors.Join(errs...); err != nil {
		fmt.Fprintf(os.Stderr, "realnode: %v\n", err)
	}
}

// removeDisks removes all but the logs.
func (c *cluster) removeDisks() error {
	disks, err := filepath.Glob(filepath.Join(c.dir, "disk-*", "lib"))
	if err != nil {
		return err
	}
	for _, d := range disks {
		if err := os.RemoveAll(d); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// program is the file of a program that ./build has built: of the network's Kubernetes, if that has the program.
func (c *cluster) program(name string) string {
	own := filepath.Join(c.programs, c.network.kubernetes, name)
	if _, err := os.Stat(own); c.network.kubernetes != "" && err == nil {
		return own
	}
	return filepath.Join(c.programs, name)
}

func (c *cluster) log(name string) string { return filepath.Join(c.dir, name+".log") }

// startDNS starts CoreDNS as pods behind the Service that pods ask. It needs the Service "kubernetes", so somebody has to
// forward by then.
func (c *cluster) startDNS(ctx context.Context) error {
	text, err := os.ReadFile(filepath.Join("testdata", "coredns.yaml"))
	if err != nil {
		return err
	}
	if err := c.kube.apply(ctx, strings.ReplaceAll(string(text), "DNS_SERVICE", c.network.dns())); err != nil {
		return err
	}
	_, err = c.kube.kubectl(ctx, "-n", "kube-system", "rollout", "status", "deployment/coredns", "--timeout", patience.String())
	return err
}
