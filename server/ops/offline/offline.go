// Package offline prints what a node would do with manifests, without a cluster.
//
// Paths of manifests come in, the forwarding table or the xDS resources of one node go out, as text. It runs the same
// code as the control plane: the same reader, the same translation. It never connects to an API server and starts nothing.
package offline

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"sigs.k8s.io/yaml"

	"github.com/fairlead/fairlead/server/source"
	"github.com/fairlead/fairlead/translate"
	"github.com/fairlead/fairlead/translate/envoy"
	"github.com/fairlead/fairlead/translate/kube"
	"github.com/fairlead/fairlead/translate/model"
)

// Config says what to print.
type Config struct {
	Paths            []string  // Files, folders, or source.Stdin.
	Stdin            io.Reader // What source.Stdin stands for.
	Node             string
	ServiceProxyName string // As of kube.Reader.
	Format           string // One of Formats.
	FailOnProblems   bool

	// Notes is where a line goes that counts the objects of kinds that were passed over.
	Notes io.Writer
}

// ErrProblems is the error of manifests with problems, where those are to be an error. The output has them already.
var ErrProblems = errors.New("there are problems, see the output")

// Formats are the forms of the output: the forwarding table for people, the same for programs, and the resources that the
// node's agent and Envoy are served.
var Formats = []string{"table", "json", "yaml", "xds"}

// Run writes the output. That of manifests with faults has their problems. The error is about the configuration, a
// path that cannot be read, manifests in which there is nothing to read, or it is ErrProblems.
func Run(cfg Config, w io.Writer) error {
	switch {
	case len(cfg.Paths) == 0:
		return fmt.Errorf("no manifests: name a file, a folder, or %s for standard input", source.Stdin)
	case cfg.Node == "":
		return fmt.Errorf("no node: give the name of the node whose table to print")
	case !slices.Contains(Formats, cfg.Format):
		return fmt.Errorf("format %q: choose one of %q", cfg.Format, Formats)
	}
	world, nothing := World(cfg)
	if world == nil {
		return nothing
	}
	table := world.Table(cfg.Node)
	text, err := []byte(table.Text()), error(nil)
	switch cfg.Format {
	case "json":
		text, err = table.JSON()
	case "yaml":
		if text, err = table.JSON(); err == nil {
			text, err = yaml.JSONToYAML(text)
		}
	case "xds":
		text, err = resources(table)
	}
	if err != nil {
		return err
	}
	if _, err = w.Write(text); err != nil {
		return err
	}
	if nothing == nil && cfg.FailOnProblems && len(table.Problems) > 0 {
		return ErrProblems
	}
	return nothing
}

// World reads the manifests of a configuration and returns what is in them. If that is nothing, it returns what is wrong
// with them, and an error besides; without a World, the error is about a path that cannot be read.
func World(cfg Config) (*translate.World, error) {
	manifests, err := source.ReadManifests(cfg.Paths, cfg.Stdin)
	if err != nil {
		return nil, err
	}
	world := translate.NewWorld()
	world.SetProblems("manifests", manifests.Problems)
	reader := kube.Reader{ServiceProxyName: cfg.ServiceProxyName}
	for _, o := range manifests.Objects {
		world.Set(reader.Read(o, time.Time{}))
	}
	passedOver := manifests.PassedOver.String()
	if passedOver != "" && cfg.Notes != nil {
		fmt.Fprintf(cfg.Notes, "passed over: %s\n", passedOver)
	}
	if len(manifests.Objects) > 0 {
		return world, nil
	}
	why := "they are empty"
	switch {
	case len(manifests.Problems) > 0:
		first := manifests.Problems[0]
		why = fmt.Sprintf("%s: %s", first.Object, first.Message)
		if more := len(manifests.Problems) - 1; more > 0 {
			why += fmt.Sprintf("; and %d more", more)
		}
	case passedOver != "":
		why = "there is only " + passedOver
	}
	return world, fmt.Errorf("no Service, EndpointSlice or Node could be read: %s", why)
}

// resource is one xDS resource in the output.
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
