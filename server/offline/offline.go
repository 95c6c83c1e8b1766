// Package offline answers what a node would do with manifests, without a cluster.
//
// Paths of manifests come in, the forwarding table or the xDS resources of one node go out, as text. It takes the same
// way as the control plane: the same reader, the same translation. It never talks to an API server and starts nothing.
package offline

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	"github.com/fairlead/fairlead/server/watch"
	"github.com/fairlead/fairlead/translate"
	"github.com/fairlead/fairlead/translate/envoy"
	"github.com/fairlead/fairlead/translate/kube"
	"github.com/fairlead/fairlead/translate/model"
)

// Config says what to answer.
type Config struct {
	Paths            []string  // Files, folders, or watch.Stdin.
	Stdin            io.Reader // What watch.Stdin stands for.
	Node             string
	ServiceProxyName string // As of kube.Reader.
	Format           string // One of Formats.
}

// Formats are the forms of an answer: the forwarding table for people, the same for programs, and the resources that the
// node's agent and Envoy are served.
var Formats = []string{"table", "json", "xds"}

// Run writes the answer. Manifests with faults are answered with their problems; the error is about the configuration, or
// a path that cannot be read.
func Run(cfg Config, w io.Writer) error {
	switch {
	case len(cfg.Paths) == 0:
		return fmt.Errorf("no manifests: name a file, a folder, or %s for standard input", watch.Stdin)
	case cfg.Node == "":
		return fmt.Errorf("no node: give the name of the node whose table to print")
	case !slices.Contains(Formats, cfg.Format):
		return fmt.Errorf("format %q: choose one of %q", cfg.Format, Formats)
	}
	table, err := load(cfg)
	if err != nil {
		return err
	}
	text := []byte(table.Text())
	switch cfg.Format {
	case "json":
		text, err = table.JSON()
	case "xds":
		text, err = resources(table)
	}
	if err != nil {
		return err
	}
	_, err = w.Write(text)
	return err
}

// load reads the manifests and returns the node's table.
func load(cfg Config) (translate.Table, error) {
	world, err := World(cfg)
	if err != nil {
		return translate.Table{}, err
	}
	return world.Table(cfg.Node), nil
}

// World reads the manifests of a configuration and returns what is in them.
func World(cfg Config) (*translate.World, error) {
	objects, problems, err := watch.ReadManifests(cfg.Paths, cfg.Stdin)
	if err != nil {
		return nil, err
	}
	world := translate.NewWorld()
	world.SetProblems("manifests", problems)
	reader := kube.Reader{ServiceProxyName: cfg.ServiceProxyName}
	for _, o := range objects {
		world.Set(reader.Read(o, time.Time{}))
	}
	return world, nil
}

// resource is one xDS resource in the answer.
type resource struct {
	TypeURL  string          `json:"typeUrl"`
	Name     string          `json:"name"`
	Resource json.RawMessage `json:"resource"`
}

// resources returns the xDS resources of a table and its problems as JSON, in order of type and name.
func resources(t translate.Table) ([]byte, error) {
	answer := struct {
		Node      string          `json:"node"`
		Resources []resource      `json:"resources"`
		Problems  []model.Problem `json:"problems"`
	}{t.Node, []resource{}, append([]model.Problem{}, t.Problems...)}
	for _, r := range envoy.Resources(t.Frontends) {
		text, err := protojson.Marshal(r.Message)
		if err != nil {
			return nil, fmt.Errorf("resource %s %q: %w", r.TypeURL, r.Name, err)
		}
		answer.Resources = append(answer.Resources, resource{r.TypeURL, r.Name, text})
	}
	slices.SortFunc(answer.Resources, func(a, b resource) int {
		return cmp.Or(cmp.Compare(a.TypeURL, b.TypeURL), cmp.Compare(a.Name, b.Name))
	})
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ") // Which also undoes the spaces that protojson puts in at random.
	if err := enc.Encode(answer); err != nil {
		return nil, fmt.Errorf("resources of node %q: %w", t.Node, err)
	}
	return b.Bytes(), nil
}
