package source

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/fairlead/fairlead/translate/kube"
	"github.com/fairlead/fairlead/translate/model"
)

const (
	// quiet is how long a file that is written in place must stay unchanged before it is read: no event says when its
	// writer is done. A file that is renamed into place is complete and read at once.
	quiet = 10 * time.Millisecond

	// defaultRescanInterval is how often all files are checked for changes without an event: the target of a
	// symbolic link, a file of a network file system, a folder that was replaced.
	defaultRescanInterval = 10 * time.Second
)

// DirectoryConfig configures the source directory.
type DirectoryConfig struct {
	Paths            []string      // Folders of manifests, or manifests.
	ServiceProxyName string        // As in KubernetesConfig.
	RescanInterval   time.Duration // How often to look for changes without an event; 0 means 10 s.
	Log              *slog.Logger
}

// Directory reads manifests of Services, EndpointSlices and Nodes, and reads them again when they change.
//
// A manifest that can no longer be read, or is empty, counts as it last was until it is good again, so that a file which
// is half written removes nothing. To remove an object, write the manifest without it or remove the file.
type Directory struct {
	cfg     DirectoryConfig
	reader  kube.Reader
	catalog *catalog
	watcher *fsnotify.Watcher
	queue   *Queue
	dirty   map[string]time.Time // When to read the files that are being written.
	failure string               // Why the paths could not be listed the last time.
}

// NewDirectory returns a source that reads manifests.
func NewDirectory(cfg DirectoryConfig) *Directory {
	return &Directory{
		cfg:     cfg,
		reader:  kube.Reader{ServiceProxyName: cfg.ServiceProxyName},
		catalog: newCatalog(),
		dirty:   map[string]time.Time{},
	}
}

// Run feeds the queue until the context ends. It fails if one of the paths does not exist at the start or cannot be
// watched. It may be called once.
func (d *Directory) Run(ctx context.Context, q *Queue) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch manifests: %w", err)
	}
	defer w.Close()
	d.watcher, d.queue = w, q
	// Watched first and read then, so that no change falls in between.
	if err := d.watch(); err != nil {
		return err
	}
	if err := d.scan(); err != nil {
		return err
	}
	q.SetSynced(objectKinds...)
	d.follow(ctx)
	return nil
}

// watch watches the paths for changes. A file is watched through its folder: when a file is replaced, a watch of the file
// itself stays with the old one.
func (d *Directory) watch() error {
	for _, path := range d.cfg.Paths {
		folder, err := folderOf(path)
		if err == nil {
			err = d.watcher.Add(folder)
		}
		if err != nil {
			return fmt.Errorf("watch manifests in %s: %w", path, err)
		}
	}
	return nil
}

// follow handles changes until the context ends.
func (d *Directory) follow(ctx context.Context) {
	interval := cmp.Or(d.cfg.RescanInterval, defaultRescanInterval)
	rescan := time.NewTicker(interval)
	defer rescan.Stop()
	settle := time.NewTimer(interval)
	defer settle.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-d.watcher.Events:
			d.handle(e)
		case err := <-d.watcher.Errors:
			d.cfg.Log.Warn("changes of manifests were missed, reading all", "error", err)
			d.rescan()
		case <-rescan.C:
			d.rescan()
		case now := <-settle.C:
			d.loadSettled(now)
		}
		if next, ok := earliest(d.dirty); ok {
			settle.Reset(time.Until(next))
		}
	}
}

// handle handles one event.
func (d *Directory) handle(e fsnotify.Event) {
	path := filepath.Clean(e.Name)
	switch {
	case filepath.Base(path) == configMapData:
		d.rescan()
	case !d.ours(path):
	case e.Has(fsnotify.Write):
		d.dirty[path] = time.Now().Add(quiet)
	case e.Has(fsnotify.Create), e.Has(fsnotify.Remove), e.Has(fsnotify.Rename):
		d.load([]string{path})
	}
}

// configMapData is the symbolic link that the paths of all files of a mounted ConfigMap go through, and that the kubelet replaces
// when they change.
const configMapData = "..data"

// ours reports whether a file is one of the manifests that the configured paths stand for.
func (d *Directory) ours(file string) bool {
	for _, path := range d.cfg.Paths {
		path = filepath.Clean(path)
		if file == path || filepath.Dir(file) == path && isManifest(filepath.Base(file)) {
			return true
		}
	}
	return false
}

func earliest(times map[string]time.Time) (first time.Time, ok bool) {
	for _, t := range times {
		if !ok || t.Before(first) {
			first, ok = t, true
		}
	}
	return first, ok
}

// loadSettled reads the files that have been unchanged long enough.
func (d *Directory) loadSettled(now time.Time) {
	var settled []string
	for file, at := range d.dirty {
		if !at.After(now) {
			settled = append(settled, file)
			delete(d.dirty, file)
		}
	}
	d.load(settled)
}

// rescan reads what changed without an event, and keeps what is known of paths that cannot be listed now.
func (d *Directory) rescan() {
	err := errors.Join(d.watch(), d.scan())
	failure := ""
	if err != nil {
		failure = strings.ReplaceAll(err.Error(), "\n", "; ")
	}
	if failure == d.failure {
		return
	}
	d.failure = failure
	c := gone(model.ObjectKey{Kind: KindSource, Name: "manifests"})
	if failure != "" {
		c.Problems = []model.Problem{{Object: "manifests", Reason: model.Unreadable, Message: failure}}
	}
	d.queue.Set(c)
}

// scan reads all files that are new, changed or removed.
func (d *Directory) scan() error {
	listed, err := manifestFiles(d.cfg.Paths)
	if err != nil {
		return err
	}
	var stale []string
	present := map[string]bool{}
	for _, f := range listed {
		present[f.path] = true
		if d.catalog.stale(f.path) {
			stale = append(stale, f.path)
		}
	}
	for path := range d.catalog.files {
		if !present[path] {
			stale = append(stale, path)
		}
	}
	d.load(stale)
	return nil
}

// load reads files and queues what that changes.
func (d *Directory) load(paths []string) {
	changed := map[model.ObjectKey]bool{}
	seen := time.Now()
	for i, f := range readAll(paths, d.reader, seen) {
		if old := d.catalog.files[paths[i]]; f.passedOver != "" && (old == nil || old.passedOver != f.passedOver) {
			d.cfg.Log.Info("objects of other kinds are passed over", "file", paths[i], "objects", f.passedOver)
		}
		d.catalog.put(paths[i], f, changed)
	}
	changes := make([]Event, 0, len(changed))
	for key := range changed {
		changes = append(changes, Event{Object: d.catalog.object(key), Seen: seen})
	}
	d.queue.Set(changes...)
}

// folderOf returns the folder whose entries a path stands for.
func folderOf(path string) (string, error) {
	info, err := os.Stat(path)
	if err != nil || info.IsDir() {
		return path, err
	}
	return filepath.Dir(path), nil
}
