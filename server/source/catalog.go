package source

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	"github.com/fairlead/fairlead/translate/kube"
	"github.com/fairlead/fairlead/translate/model"
)

// catalog holds what each manifest describes. It belongs to one goroutine.
type catalog struct {
	files       map[string]*file
	describedBy map[model.ObjectKey][]string // The files that describe an object, in order; the first one counts.
}

// file is a manifest as it was last read.
type file struct {
	info     fs.FileInfo // Nil if it could not be had.
	objects  map[model.ObjectKey]model.Object
	problems []model.Problem
	state    fileState

	passedOver string // The objects of kinds that Fairlead does not read.
}

type fileState int

const (
	whole  fileState = iota
	broken           // Something in it could not be read.
	empty            // Not even a comment: about to be written, in all likelihood.
	absent           // There is no such file.
)

func newCatalog() *catalog {
	return &catalog{files: map[string]*file{}, describedBy: map[model.ObjectKey][]string{}}
}

// stale reports whether a file may differ from what was read.
func (c *catalog) stale(path string) bool {
	known := c.files[path]
	info, err := os.Stat(path)
	if known == nil || err != nil {
		return true
	}
	return !os.SameFile(info, known.info) || !info.ModTime().Equal(known.info.ModTime()) || info.Size() != known.info.Size()
}

// put replaces the entry of a file, and adds to changed the keys of the objects that may differ now and of the files
// with which something else may be wrong now.
func (c *catalog) put(path string, f *file, changed map[model.ObjectKey]bool) {
	old := c.files[path]
	if old == nil {
		old = &file{}
	}
	if f.state == broken && old.objects != nil {
		f.objects = old.objects
	}
	if f.state == empty && len(old.objects) > 0 {
		f.objects = old.objects
		f.problems = []model.Problem{{Object: path, Reason: model.Unreadable, Message: "the file is empty; remove it if its objects are meant to go"}}
	}
	if c.files[path] = f; f.state == absent {
		delete(c.files, path)
	}
	for key := range old.objects {
		c.mark(key, changed)
		if _, still := f.objects[key]; !still {
			c.disown(key, path)
		}
	}
	for key := range f.objects {
		c.own(key, path)
		c.mark(key, changed)
	}
	if len(old.problems)+len(f.problems) > 0 {
		changed[sourceKey(path)] = true
	}
}

// mark records that an object may differ, and with it the problems of all files that describe it.
func (c *catalog) mark(key model.ObjectKey, changed map[model.ObjectKey]bool) {
	changed[key] = true
	if files := c.describedBy[key]; len(files) > 1 {
		for _, path := range files {
			changed[sourceKey(path)] = true
		}
	}
}

func (c *catalog) own(key model.ObjectKey, path string) {
	files := c.describedBy[key]
	if i, found := slices.BinarySearch(files, path); !found {
		c.describedBy[key] = slices.Insert(files, i, path)
	}
}

func (c *catalog) disown(key model.ObjectKey, path string) {
	files := slices.DeleteFunc(c.describedBy[key], func(file string) bool { return file == path })
	if c.describedBy[key] = files; len(files) == 0 {
		delete(c.describedBy, key)
	}
}

// object returns what a key stands for now; the key alone if that is nothing.
func (c *catalog) object(key model.ObjectKey) model.Object {
	if key.Kind == KindSource {
		return model.Object{Key: key, Problems: c.problems(key.Name)}
	}
	if files := c.describedBy[key]; len(files) > 0 {
		return c.files[files[0]].objects[key]
	}
	return model.Object{Key: key}
}

// problems returns what is wrong with a file, objects that another file describes included.
func (c *catalog) problems(path string) []model.Problem {
	f := c.files[path]
	if f == nil {
		return nil
	}
	problems := slices.Clone(f.problems)
	for key := range f.objects {
		if first := c.describedBy[key][0]; first != path {
			problems = append(problems, model.Problem{
				Object:  path,
				Reason:  model.DuplicateObject,
				Message: fmt.Sprintf("%s is described in %s already, which counts; remove one of the two", key, first),
			})
		}
	}
	return problems
}

// sourceKey is the key of what is wrong with a file.
func sourceKey(path string) model.ObjectKey { return model.ObjectKey{Kind: KindSource, Name: path} }

// readAll reads files on all cores, and returns them in the order of their paths.
func readAll(paths []string, reader kube.Reader, seen time.Time) []*file {
	files := make([]*file, len(paths))
	each(len(paths), func(i int) { files[i] = readFile(paths[i], reader, seen) })
	return files
}

// readFile reads one file.
func readFile(path string, reader kube.Reader, seen time.Time) *file {
	// Stat comes before reading: what is written in between makes it stale.
	info, _ := os.Stat(path)
	data, err := readManifest(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return &file{state: absent}
	case err != nil:
		return &file{info: info, state: broken, problems: []model.Problem{{Object: path, Reason: model.Unreadable, Message: err.Error()}}}
	case len(bytes.TrimSpace(data)) == 0:
		return &file{info: info, state: empty}
	}
	f := parse(path, data, reader, seen)
	f.info = info
	return f
}

// parse reads the documents of one file.
func parse(path string, data []byte, reader kube.Reader, seen time.Time) *file {
	c := readDocuments(path, data)
	objects := c.unique()
	f := &file{objects: make(map[model.ObjectKey]model.Object, len(objects)), problems: c.problems, passedOver: c.passedOver.String()}
	if slices.ContainsFunc(c.problems, func(p model.Problem) bool { return !harmless[p.Reason] }) {
		f.state = broken
	}
	for _, found := range objects {
		o := reader.Read(found.manifest, seen)
		setChanged(&o, seen)
		f.objects[o.Key] = o
	}
	return f
}

// harmless are the reasons that leave no doubt what the rest of a file says: it is not half written.
var harmless = map[model.Reason]bool{model.DuplicateObject: true, model.InvalidField: true, model.UnsupportedObject: true}

// setChanged dates an object to when its file was seen to have changed. Times within a manifest are those of an API server
// that it was once read from.
func setChanged(o *model.Object, seen time.Time) {
	switch {
	case o.Service != nil:
		o.Service.Version.At = seen
	case o.Slice != nil:
		o.Slice.Version.At = seen
	case o.Node != nil:
		o.Node.Version.At = seen
	}
}
