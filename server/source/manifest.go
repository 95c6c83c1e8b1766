package source

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	kjson "sigs.k8s.io/json"

	"github.com/fairlead/fairlead/translate/model"
)

// Manifests is the content of manifests.
type Manifests struct {
	Objects    []runtime.Object // Services, EndpointSlices, Nodes and Endpoints, the last as PartialObjectMetadata.
	Problems   []model.Problem  // In order.
	PassedOver Kinds            // The objects of kinds that Fairlead does not read.
}

// ReadManifests reads the Services, EndpointSlices and Nodes in files of YAML or JSON documents. A path is a file, a
// folder, whose manifests are read but not those of its folders, a pattern of such paths, or Stdin. Lists are opened;
// objects of other kinds are counted. What the API server would fill in is filled in.
//
// A document that cannot be read costs only itself, and so does a file of a folder: it is a Problem that names them. A
// field that its object does not have is a Problem, and the rest of the object counts. Of several manifests of one
// object the first counts, in order of path and document, and the others are Problems. The error is about a path of its
// argument that cannot be read at all.
func ReadManifests(paths []string, stdin io.Reader) (Manifests, error) {
	paths, err := expandPaths(paths)
	if err != nil {
		return Manifests{}, err
	}
	files, err := manifestFiles(paths)
	if err != nil {
		return Manifests{}, err
	}
	if len(files) == 0 {
		return Manifests{}, fmt.Errorf("read manifests: no file in %s ends in %s, and files in folders of it are not read; name the files or their folder",
			strings.Join(paths, ", "), strings.Join(manifestSuffixes, ", "))
	}
	var all contents
	for _, f := range files {
		c, err := readPath(f, stdin)
		if err != nil {
			return Manifests{}, err
		}
		all.add(c)
	}
	m := Manifests{PassedOver: all.passedOver}
	for _, o := range all.unique() {
		m.Objects = append(m.Objects, o.manifest)
	}
	m.Problems = all.problems
	slices.SortFunc(m.Problems, model.Problem.Compare)
	return m, nil
}

func readPath(f manifestFile, stdin io.Reader) (contents, error) {
	name := f.path
	var data []byte
	var err error
	if f.path == Stdin {
		name = "standard input"
		data, err = io.ReadAll(stdin)
	} else {
		data, err = readManifest(f.path)
	}
	var c contents
	switch {
	case err == nil:
		c = readDocuments(name, data)
	case f.named:
		return c, fmt.Errorf("read manifests: %w", err)
	case errors.Is(err, fs.ErrNotExist): // Removed since the folder was listed.
	default:
		c.problem(name, model.Unreadable, err)
	}
	return c, nil
}

// contents is what was found in a part of a file.
type contents struct {
	objects    []found
	problems   []model.Problem
	passedOver Kinds
}

// found is an object and where it stands.
type found struct {
	where    string
	key      model.ObjectKey
	manifest manifest
}

// add appends what was found in the next part.
func (c *contents) add(next contents) {
	c.objects = append(c.objects, next.objects...)
	c.problems = append(c.problems, next.problems...)
	for kind, n := range next.passedOver {
		c.passOver(kind, n)
	}
}

func (c *contents) problem(object string, reason model.Reason, err error) {
	c.problems = append(c.problems, model.Problem{Object: object, Reason: reason, Message: err.Error()})
}

func (c *contents) passOver(kind string, n int) {
	if c.passedOver == nil {
		c.passedOver = Kinds{}
	}
	c.passedOver[kind] += n
}

// unique returns the first of the manifests of each object. The others are problems.
func (c *contents) unique() []found {
	first := make(map[model.ObjectKey]string, len(c.objects))
	return slices.DeleteFunc(c.objects, func(o found) bool {
		where, again := first[o.key]
		if again {
			c.problem(o.where, model.DuplicateObject, fmt.Errorf("%s is described in %s already, which counts; remove one of the two", o.key, where))
		} else {
			first[o.key] = o.where
		}
		return again
	})
}

// inOrder reads n parts on all cores, and returns what was found in their order.
func inOrder(n int, read func(int) contents) contents {
	parts := make([]contents, n)
	each(n, func(i int) { parts[i] = read(i) })
	var all contents
	for _, part := range parts {
		all.add(part)
	}
	return all
}

// readDocuments reads the documents of one file.
func readDocuments(name string, data []byte) contents {
	text, err := toUTF8(data)
	if err != nil {
		var c contents
		c.problem(name, model.Unreadable, err)
		return c
	}
	documents := splitDocuments(text)
	return inOrder(len(documents), func(i int) contents {
		where := fmt.Sprintf("%s, document %d", name, i+1)
		values := documents[i].values()
		if len(values) == 1 {
			return readDocument(where, values[0])
		}
		return inOrder(len(values), func(j int) contents {
			return readDocument(fmt.Sprintf("%s, value %d", where, j+1), values[j])
		})
	})
}

func readDocument(where string, d document) contents {
	var c contents
	content, doubts, err := d.toJSON()
	if err != nil {
		c.problem(where, model.Unreadable, fmt.Errorf("not YAML: %w; correct the document", err))
		return c
	}
	for _, doubt := range doubts {
		c.problem(where, model.InvalidField, errors.New(doubt))
	}
	if !bytes.Equal(bytes.TrimSpace(content), []byte("null")) { // Comments only.
		c.add(readObject(where, content))
	}
	return c
}

// header has the fields that identify an object, and those that only lists and responses of an API server have.
type header struct {
	metav1.TypeMeta
	Items   []json.RawMessage `json:"items"`
	Message string            `json:"message"`
}

// readObject reads one object, or the objects of a list.
func readObject(where string, content []byte) contents {
	var c contents
	if err := checkMapping(content); err != nil {
		c.problem(where, model.InvalidObject, err)
		return c
	}
	var head header
	strict, err := kjson.UnmarshalStrict(content, &head, kjson.DisallowDuplicateFields)
	if err != nil && (head.Kind == "" || head.isList()) {
		c.problem(where, model.InvalidObject, fmt.Errorf("not a Kubernetes object: %w; correct the document, or remove it", plain(err)))
		return c
	}
	known, reason, err := judge(&head, content)
	switch {
	case err != nil:
		c.problem(where, reason, err)
	case known == nil && head.isList():
		c.passOver(strings.TrimSuffix(head.Kind, "List"), len(head.Items))
	case known == nil:
		c.passOver(head.kindName(), 1)
	case head.isList():
		for _, doubt := range strict {
			c.problem(where, model.InvalidField, fieldDoubt(doubt, nil))
		}
		c.add(inOrder(len(head.Items), func(i int) contents {
			return readItem(fmt.Sprintf("%s, item %d", where, i+1), head.Items[i], head.itemType())
		}))
	default:
		c.decode(where, content, *known)
	}
	return c
}

// readItem reads one object of a list. In a list of one kind the objects themselves need not name it.
func readItem(where string, item json.RawMessage, implied metav1.TypeMeta) contents {
	var fields map[string]json.RawMessage
	if implied.Kind != "" && json.Unmarshal(item, &fields) == nil && fields != nil && fields["kind"] == nil {
		fields["kind"], _ = json.Marshal(implied.Kind)
		fields["apiVersion"], _ = json.Marshal(implied.APIVersion)
		if named, err := json.Marshal(fields); err == nil {
			item = named
		}
	}
	return readObject(where, item)
}

// decode reads an object of a known kind. A field that cannot be read costs the object, one that there is not does not.
func (c *contents) decode(where string, content []byte, known knownKind) {
	o := known.empty()
	strict, err := kjson.UnmarshalStrict(content, o)
	if err != nil && o.GetName() == "" {
		c.problem(where, model.InvalidObject, fmt.Errorf("not a %s: %w; correct the field", known.kind, plain(err)))
		return
	}
	if o.GetName() == "" {
		c.problem(where, model.InvalidObject, fmt.Errorf("the %s has no metadata.name; give it one", known.kind))
		return
	}
	setDefaults(o)
	key := model.ObjectKey{Kind: known.kind, Namespace: o.GetNamespace(), Name: o.GetName()}
	if err != nil {
		c.problem(key.String(), model.InvalidObject, fmt.Errorf("%w; correct the field (in %s)", plain(err), where))
		return
	}
	if !known.partial {
		for _, doubt := range strict[:min(len(strict), maxDoubts)] {
			c.problem(key.String(), model.InvalidField, fmt.Errorf("%w (in %s)", fieldDoubt(doubt, o), where))
		}
	}
	c.objects = append(c.objects, found{where, key, o})
}
