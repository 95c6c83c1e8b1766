package watch

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	utiljson "k8s.io/apimachinery/pkg/util/json"
	"sigs.k8s.io/yaml"

	"github.com/fairlead/fairlead/translate/model"
)

// Stdin is the path that stands for standard input.
const Stdin = "-"

// manifestSuffixes are the files of a folder that are read, as kubectl does.
var manifestSuffixes = []string{".yaml", ".yml", ".json"}

// ReadManifests reads the Services, EndpointSlices and Nodes in files of YAML or JSON documents. A path is a file, a
// folder, whose manifests are read but not those of its folders, or Stdin. Lists are opened; objects of other kinds are
// passed over. What the API server would fill in is filled in.
//
// A document that cannot be read costs only itself, and so does a file of a folder: it is a Problem that names them. Of
// several manifests of one object the first counts, in order of path and document, and the others are Problems. The
// error is about a path of its argument that cannot be read at all.
func ReadManifests(paths []string, stdin io.Reader) ([]runtime.Object, []model.Problem, error) {
	files, err := manifestFiles(paths)
	if err != nil {
		return nil, nil, err
	}
	r := manifestReader{seen: map[model.ObjectKey]string{}}
	for _, f := range files {
		if err := r.readFile(f, stdin); err != nil {
			return nil, nil, err
		}
	}
	slices.SortFunc(r.problems, model.Problem.Compare)
	return r.objects, r.problems, nil
}

// manifestFile is one file to read.
type manifestFile struct {
	path  string
	named bool // By the caller, who wants to hear when it cannot be read.
}

// manifestFiles returns the files that paths stand for, each once, in order.
func manifestFiles(paths []string) ([]manifestFile, error) {
	var files []manifestFile
	for _, path := range paths {
		if path == Stdin {
			files = append(files, manifestFile{path, true})
			continue
		}
		path = filepath.Clean(path)
		info, err := os.Stat(path)
		if err != nil {
			return nil, fmt.Errorf("read manifests: %w", err)
		}
		if !info.IsDir() {
			files = append(files, manifestFile{path, true})
			continue
		}
		entries, err := os.ReadDir(path)
		if err != nil {
			return nil, fmt.Errorf("read manifests: %w", err)
		}
		for _, e := range entries {
			if isManifest(e.Name()) {
				files = append(files, manifestFile{path: filepath.Join(path, e.Name())})
			}
		}
	}
	slices.SortStableFunc(files, func(a, b manifestFile) int { return strings.Compare(a.path, b.path) })
	return slices.CompactFunc(files, func(a, b manifestFile) bool { return a.path == b.path }), nil
}

// isManifest reports whether a folder's entry is a manifest. Hidden files are an editor's, or a ConfigMap volume's own.
func isManifest(name string) bool {
	return !strings.HasPrefix(name, ".") && slices.Contains(manifestSuffixes, filepath.Ext(name))
}

// manifestReader collects what manifests hold.
type manifestReader struct {
	objects  []runtime.Object
	problems []model.Problem
	seen     map[model.ObjectKey]string // Where each object was found.
}

func (r *manifestReader) readFile(f manifestFile, stdin io.Reader) error {
	var data []byte
	var err error
	name := f.path
	if f.path == Stdin {
		name = "standard input"
		data, err = io.ReadAll(stdin)
	} else {
		data, err = os.ReadFile(f.path)
	}
	switch {
	case err == nil:
		r.readDocuments(name, data)
	case f.named:
		return fmt.Errorf("read manifests: %w", err)
	case errors.Is(err, os.ErrNotExist): // Removed since the folder was listed.
	default:
		r.problem(name, model.Unreadable, err)
	}
	return nil
}

// readDocuments reads the documents of one file.
func (r *manifestReader) readDocuments(name string, data []byte) {
	for i, document := range splitDocuments(data) {
		where := fmt.Sprintf("%s, document %d", name, i+1)
		content, err := toJSON(document)
		if err != nil {
			r.problem(where, model.Unreadable, fmt.Errorf("not YAML: %w; correct the document", err))
			continue
		}
		r.readObject(where, content)
	}
}

// toJSON returns a document as JSON. Parsing YAML takes several times as long as all else that reading an object takes, so
// a document that is JSON already is taken as it is.
func toJSON(document []byte) ([]byte, error) {
	if trimmed := bytes.TrimSpace(document); trimmed[0] == '{' && json.Valid(trimmed) {
		return trimmed, nil
	}
	return yaml.YAMLToJSON(document)
}

// splitDocuments splits a file at its lines of three dashes, before anything is parsed: so a broken document cannot hide
// those after it. What follows the dashes on their line is part of the document. Empty documents do not count.
func splitDocuments(data []byte) [][]byte {
	var all [][]byte
	start := 0
	keep := func(end int) {
		if document := data[start:end]; len(bytes.TrimSpace(document)) > 0 {
			all = append(all, document)
		}
	}
	for at := 0; at < len(data); {
		end := len(data)
		if i := bytes.IndexByte(data[at:], '\n'); i >= 0 {
			end = at + i + 1
		}
		if rest, ok := bytes.CutPrefix(data[at:end], []byte("---")); ok && (len(rest) == 0 || bytes.ContainsAny(rest[:1], " \t\r\n")) {
			keep(at)
			start = at + len("---")
		}
		at = end
	}
	keep(len(data))
	return all
}

// readObject reads one object, or the objects of a list.
func (r *manifestReader) readObject(where string, content []byte) {
	if bytes.Equal(bytes.TrimSpace(content), []byte("null")) {
		return // Comments only.
	}
	// Kubernetes' own decoder knows capitals from small letters in field names, which encoding/json does not.
	var head struct {
		metav1.TypeMeta
		Items []json.RawMessage `json:"items"`
	}
	if err := utiljson.Unmarshal(content, &head); err != nil {
		r.problem(where, model.InvalidObject, fmt.Errorf("not a Kubernetes object: %w; correct the document, or remove it", err))
		return
	}
	switch head.APIVersion + " " + head.Kind {
	case "v1 List", "v1 ServiceList", "v1 NodeList", "discovery.k8s.io/v1 EndpointSliceList":
		for i, item := range head.Items {
			r.readItem(fmt.Sprintf("%s, item %d", where, i+1), item, strings.TrimSuffix(head.Kind, "List"), head.APIVersion)
		}
	case "v1 Service":
		r.decode(where, content, model.KindService, &corev1.Service{})
	case "v1 Node":
		r.decode(where, content, model.KindNode, &corev1.Node{})
	case "discovery.k8s.io/v1 EndpointSlice":
		r.decode(where, content, model.KindEndpointSlice, &discoveryv1.EndpointSlice{})
	case " ":
		r.problem(where, model.InvalidObject, errors.New("apiVersion and kind are missing; is this a Kubernetes object?"))
	}
}

// readItem reads one object of a list. In a list of one kind the objects themselves need not name it.
func (r *manifestReader) readItem(where string, item json.RawMessage, kind, apiVersion string) {
	if kind == "" {
		r.readObject(where, item)
		return
	}
	var fields map[string]any
	if err := utiljson.Unmarshal(item, &fields); err == nil && fields["kind"] == nil {
		fields["kind"], fields["apiVersion"] = kind, apiVersion
		if named, err := json.Marshal(fields); err == nil {
			item = named
		}
	}
	r.readObject(where, item)
}

// manifest is an object that decode reads.
type manifest interface {
	runtime.Object
	metav1.Object
}

// decode reads an object of a known kind and keeps it, unless there is one with its name.
func (r *manifestReader) decode(where string, content []byte, kind model.ObjectKind, o manifest) {
	if err := utiljson.Unmarshal(content, o); err != nil {
		r.problem(where, model.InvalidObject, fmt.Errorf("not a %s: %w; correct the field", kind, err))
		return
	}
	if o.GetName() == "" {
		r.problem(where, model.InvalidObject, fmt.Errorf("the %s has no metadata.name; give it one", kind))
		return
	}
	setDefaults(o)
	key := model.ObjectKey{Kind: kind, Namespace: o.GetNamespace(), Name: o.GetName()}
	if first, ok := r.seen[key]; ok {
		r.problem(where, model.DuplicateObject, fmt.Errorf("%s is described in %s already, which counts; remove one of the two", key, first))
		return
	}
	r.seen[key] = where
	r.objects = append(r.objects, o)
}

// setDefaults fills in what the API server fills in when an object is created and what matters here. Ports of slices
// without a name would otherwise be passed over.
func setDefaults(o manifest) {
	switch o := o.(type) {
	case *corev1.Node:
		o.Namespace = ""
	case *corev1.Service:
		if o.Namespace == "" {
			o.Namespace = metav1.NamespaceDefault
		}
	case *discoveryv1.EndpointSlice:
		if o.Namespace == "" {
			o.Namespace = metav1.NamespaceDefault
		}
		for i := range o.Ports {
			if o.Ports[i].Name == nil {
				o.Ports[i].Name = new(string)
			}
		}
	}
}

func (r *manifestReader) problem(where string, reason model.Reason, err error) {
	r.problems = append(r.problems, model.Problem{Object: where, Reason: reason, Message: err.Error()})
}
