// Command bench measures Fairlead beside its peers, all in one run, and prints tables:
//
//	data path  requests and new connections: directly, through the kernel's DNAT, through Fairlead
//	change     from a change of one endpoint until new connections use it
//	scale      10,000 Services: time until a node forwards them, and memory
//
// It needs the binaries of Fairlead and Envoy. Everything happens in network namespaces of its own, under loads of fixed
// size. It judges nothing: a machine that does other work at the same time makes other numbers.
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"github.com/fairlead/fairlead/server/lab"
	"github.com/fairlead/fairlead/server/lab/fleet"
)

func main() {
	fairlead := flag.String("fairlead", "bin/fairlead", "`path` of Fairlead's binary")
	only := flag.String("only", "", "`name` of the one measurement to make: data-path, change or scale")
	flag.Parse()
	code, err := lab.Isolated(func() int {
		if err := run(*fairlead, *only); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			return 1
		}
		return 0
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
	}
	os.Exit(code)
}

func run(fairlead, only string) error {
	b := &bench{}
	var err error
	if b.fairlead, err = filepath.Abs(fairlead); err != nil {
		return err
	}
	if b.envoy, err = fleet.FindEnvoy("."); err != nil {
		return err
	}
	fmt.Printf("%d processors, which the client, the servers and all that is measured share.\n", runtime.NumCPU())
	for _, m := range []struct {
		name    string
		measure func(*lab.Lab, string) ([]table, error)
	}{{"data-path", b.dataPath}, {"change", b.change}, {"scale", b.scale}} {
		if only != "" && only != m.name {
			continue
		}
		err := b.inLab(m.name, func(l *lab.Lab, dir string) error {
			tables, err := m.measure(l, dir)
			for _, t := range tables {
				t.print(os.Stdout)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}
