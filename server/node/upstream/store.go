package upstream

import (
	"errors"
	"io/fs"
	"log/slog"
	"maps"
	"sync"
	"time"
)

// The store writes the state for a tenth of the time at most, and once per minPause at most: under continuous change the
// state of 10,000 Services is several megabytes, and each write waits for the disk.
const (
	minPause   = 20 * time.Millisecond
	pauseShare = 9 // Pause after a write, in multiples of what the write took.
)

// store holds the resources that the node acknowledged, in memory and, a moment later, in the state file.
type store struct {
	path string
	log  *slog.Logger
	// changed wakes the writer. A buffer of one is enough: the writer always writes the newest state.
	changed chan struct{}
	// pause is the minimum time between two writes. Tests replace it.
	pause time.Duration

	mu sync.Mutex // Guards the fields below. Held while maps are read or changed, never during I/O.
	// known has the resources by type URL and name.
	known map[string]map[string]Resource
	// doubted has the names, by type URL, of resources in updates that the node rejected, perhaps after it applied a part.
	doubted map[string]map[string]bool
	// revision counts the changes of known; written is the revision that the file has.
	revision, written uint64
}

func newStore(path string, types []string, log *slog.Logger) *store {
	s := &store{
		path: path, log: log, changed: make(chan struct{}, 1), pause: minPause,
		known: map[string]map[string]Resource{}, doubted: map[string]map[string]bool{},
	}
	loaded := s.load()
	for _, t := range types {
		s.known[t] = map[string]Resource{}
		s.doubted[t] = map[string]bool{}
		maps.Copy(s.known[t], loaded[t])
	}
	return s
}

// load reads the state file. What is missing from one that is damaged, or not there because a crash came between two renames,
// is taken from the one before: a resource that was deleted meanwhile may come back, until a control plane says so.
func (s *store) load() map[string]map[string]Resource {
	if s.path == "" {
		return nil
	}
	loaded, err := readState(s.path)
	if err != nil {
		before, errBefore := readState(PreviousState(s.path))
		if errors.Is(err, fs.ErrNotExist) && errors.Is(errBefore, fs.ErrNotExist) {
			s.log.Info("no state file yet", "path", s.path)
			return nil
		}
		s.log.Error("state file damaged: what is missing is taken from the one before, as far as that has it, until a control plane answers",
			"path", s.path, "err", err, "before", errBefore)
		loaded = merged(before, loaded)
		s.revision++ // The file does not have it.
		s.wake()
	}
	for typeURL, resources := range loaded {
		s.log.Info("state loaded", "path", s.path, "type", typeURL, "resources", len(resources))
	}
	return loaded
}

// merged returns the resources of both states; of one that both have, the newer one's.
func merged(older, newer map[string]map[string]Resource) map[string]map[string]Resource {
	all := map[string]map[string]Resource{}
	for _, state := range []map[string]map[string]Resource{older, newer} {
		for typeURL, resources := range state {
			if all[typeURL] == nil {
				all[typeURL] = map[string]Resource{}
			}
			maps.Copy(all[typeURL], resources)
		}
	}
	return all
}

// apply stores an update as known.
func (s *store) apply(u Update) {
	s.mu.Lock()
	defer s.mu.Unlock()
	known, doubted := s.known[u.Type], s.doubted[u.Type]
	different := false
	for _, name := range u.Removed {
		_, had := known[name]
		different = different || had
		delete(known, name)
		delete(doubted, name)
	}
	for _, r := range u.Changed {
		old, had := known[r.Name]
		different = different || !had || old.Version != r.Version
		known[r.Name] = r
		delete(doubted, r.Name)
	}
	if !different {
		return
	}
	s.revision++
	s.wake()
}

// doubt records that the node rejected an update.
func (s *store) doubt(u Update) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range u.Removed {
		s.doubted[u.Type][name] = true
	}
	for _, r := range u.Changed {
		s.doubted[u.Type][r.Name] = true
	}
}

// versions returns the initial_resource_versions of a new stream. A doubted resource has the empty version, which no resource
// has: so the server sends it again, or removes it.
func (s *store) versions(typeURL string) map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	versions := make(map[string]string, len(s.known[typeURL]))
	for name, r := range s.known[typeURL] {
		versions[name] = r.Version
	}
	for name := range s.doubted[typeURL] {
		versions[name] = ""
	}
	return versions
}

func (s *store) count(typeURL string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.known[typeURL])
}

// snapshot returns a copy of the known resources, by type URL and name.
func (s *store) snapshot() map[string]map[string]Resource {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.copyKnown()
}

func (s *store) copyKnown() map[string]map[string]Resource {
	known := make(map[string]map[string]Resource, len(s.known))
	for t, resources := range s.known {
		known[t] = maps.Clone(resources)
	}
	return known
}

// keep writes the state file until stop is closed, then writes what is not yet written and returns the error of that.
// It logs a write that fails, and retries after the pause.
func (s *store) keep(stop <-chan struct{}) error {
	if s.path == "" {
		<-stop
		return nil
	}
	for {
		select {
		case <-stop:
			return s.write()
		case <-s.changed:
		}
		started := time.Now()
		if err := s.write(); err != nil {
			s.log.Error("cannot write the state file: after a restart the node would begin with older state",
				"path", s.path, "err", err)
			s.wake()
		}
		timer := time.NewTimer(max(s.pause, pauseShare*time.Since(started)))
		select {
		case <-stop:
			timer.Stop()
			return s.write()
		case <-timer.C:
		}
	}
}

// wake makes the writer run again.
func (s *store) wake() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// write writes the newest state, unless the file already has it. Only keep calls it.
func (s *store) write() error {
	s.mu.Lock()
	revision := s.revision
	if revision == s.written {
		s.mu.Unlock()
		return nil
	}
	known := s.copyKnown()
	s.mu.Unlock()

	if err := writeState(s.path, known); err != nil {
		return err
	}
	s.mu.Lock()
	s.written = revision
	s.mu.Unlock()
	return nil
}
