// Package demo shows Fairlead at work on one machine to a person who reads its output.
//
// In come manifests of nodes, Services and their endpoints, and the programs to run. It builds the nodes and pods that
// they describe in a lab, runs Fairlead between them, sends traffic, changes pods and Envoy under it, and prints the results.
// It prints what it has measured and checked, and fails if a check does. It never changes the machine's own network or the
// manifests that it is given.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/fairlead/fairlead/server/lab"
	"github.com/fairlead/fairlead/server/lab/fleet"
	"github.com/fairlead/fairlead/server/node"
)

// Config says what to show.
type Config struct {
	Manifests string    // Folder of the story's manifests; it works on a copy.
	Fairlead  string    // Path of the fairlead binary.
	Envoy     string    // Path of the Envoy binary.
	Keep      bool      // At the end, leave everything running until the context ends.
	Out       io.Writer // For people.
}

// pod is a pod that serves.
type pod struct {
	*lab.Host
	node   *lab.Node
	server *lab.Server
}

// readyTimeout is how long the programs may take to be ready. It takes seconds even on a slow machine.
const readyTimeout = time.Minute

// demo is a demo that runs.
type demo struct {
	config Config
	out    *printer
	dir    string // Logs, state and the copy of the manifests.

	lab      *lab.Lab
	fleet    *fleet.Fleet
	nodes    []*lab.Node
	services map[string]*corev1.Service // By name.
	pods     []*pod                     // Those that serve, in the order of the manifests.
	client   *lab.Host                  // A pod on the first node that serves nothing.
	outside  *lab.Host                  // A host that is not part of the cluster.
}

// Check returns what is missing on this machine to run a demo: one line, with the command that helps.
func Check() error {
	if _, err := exec.LookPath("nft"); err != nil {
		return errors.New("the nft command is missing: install nftables (make setup does), or add /usr/sbin to the PATH")
	}
	return nil
}

// Run shows the demo. It runs only in the world that lab.Isolated makes. When ctx ends before the story does, it cleans up
// and returns the context's error. With any other error it keeps the folder with the logs, and says where it is.
func Run(ctx context.Context, c Config) (err error) {
	dir, err := os.MkdirTemp("", "fairlead-demo-")
	if err != nil {
		return err
	}
	d := &demo{config: c, out: newPrinter(c.Out), dir: dir, services: map[string]*corev1.Service{}}
	err = d.tell(ctx)
	if err == nil && c.Keep {
		d.keep(ctx)
	} else if ctx.Err() != nil {
		err = ctx.Err() // The other error follows from that one.
	}
	err = errors.Join(err, d.close())
	if err == nil || errors.Is(err, context.Canceled) {
		return errors.Join(err, os.RemoveAll(dir))
	}
	return fmt.Errorf("%w\nlogs and state are in %s", err, dir)
}

// tell builds the cluster and goes through the story.
func (d *demo) tell(ctx context.Context) error {
	d.out.line("A cluster of two nodes on this machine, in network namespaces of its own:")
	if err := d.build(ctx); err != nil {
		return err
	}
	for i, s := range steps {
		d.out.headline(i+1, s.title)
		if err := s.show(d, ctx); err != nil {
			return fmt.Errorf("step %d: %w", i+1, errors.Join(err, d.fleet.Check()))
		}
	}
	d.out.line("\nAll of it worked. To look further:")
	if !d.config.Keep {
		d.out.table([][]string{
			{"make demo DEMO_FLAGS=--keep", "leaves all of this running, with commands to try"},
			{"bin/fairlead translate -f " + d.config.Manifests + " --node n1", "says what a node does with these manifests"},
			{"less " + filepath.Join(d.config.Manifests, "README.md"), "says what they are"},
		})
	}
	return nil
}

// build makes the cluster, step by step, and says so.
func (d *demo) build(ctx context.Context) error {
	for _, s := range []struct {
		what string
		do   func(context.Context) (string, error)
	}{
		{"network", d.buildNetwork},
		{"programs", d.startPrograms},
		{"ready", d.awaitReady},
	} {
		start := time.Now()
		result, err := s.do(ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", s.what, err)
		}
		d.out.progress(s.what, result, time.Since(start))
	}
	return nil
}

func (d *demo) startPrograms(context.Context) (string, error) {
	server, err := d.lab.AddOutside("control-plane")
	if err != nil {
		return "", err
	}
	d.fleet, err = fleet.Start(fleet.Config{
		Fairlead: d.config.Fairlead,
		Envoy:    d.config.Envoy,
		Dir:      d.dir,
		Source:   []string{"--source", "directory", "--directory", d.manifests()},
		Server:   server,
		Nodes:    d.nodes,
	})
	return "fairlead serve on a host of its own; fairlead agent and fairlead proxy on each node", err
}

func (d *demo) awaitReady(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	frontends := 0
	for _, n := range d.nodes {
		s, err := d.fleet.Await(ctx, n.Name, func(s node.Status) bool { return fleet.Ready(s) && s.Frontends > 0 })
		if err != nil {
			return "", err
		}
		frontends = s.Frontends
	}
	return fmt.Sprintf("each node's nftables table has %d addresses and ports", frontends), nil
}

func (d *demo) manifests() string { return filepath.Join(d.dir, "manifests") }

// close ends the programs, the pods and the network.
func (d *demo) close() error {
	if d.fleet != nil {
		d.fleet.Stop()
	}
	if d.lab != nil {
		return d.lab.Close()
	}
	return nil
}

// keep says what to try, and waits for the end.
func (d *demo) keep(ctx context.Context) {
	in := d.lab.EnterCommand
	node := d.nodes[0].Name
	d.out.lines(
		"# everything is left running until Ctrl-C; in another terminal, new connections from a pod and from outside:",
		in(d.client.Name)+" curl -s http://10.96.0.10/",
		in(d.outside.Name)+" curl -s http://"+d.nodes[0].IPv4.String()+":30080/",
		"# the nftables table of "+node+", and the status of its agent:",
		in(node)+" nft list table inet fairlead",
		in(node)+" curl -s http://127.0.0.1:19001/debug/status",
		"# whether every node forwards, and why web's endpoints get traffic or none:",
		in("control-plane")+" "+d.config.Fairlead+" status --admin 127.0.0.1:19000",
		in("control-plane")+" "+d.config.Fairlead+" explain web --admin 127.0.0.1:19000",
		"# what it should do, from the manifests alone:",
		d.config.Fairlead+" translate -f "+d.manifests()+" --node "+node+" -o table",
		"# a change: edit a manifest, and ask again:",
		"${EDITOR:-vi} "+filepath.Join(d.manifests(), "web-ipv4.yaml"),
		"# what the programs have logged:",
		"tail "+d.dir+"/*.log",
	)
	<-ctx.Done()
}
