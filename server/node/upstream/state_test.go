package upstream

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// A restarted client has what was acknowledged, and sends its versions to the control plane; what was only received, or refused,
// was never true of the node.
func TestStateSurvivesRestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "state")
	plane := newControlPlane(t)
	config := Config{Addresses: []string{plane.address}, StatePath: path}
	node := start(t, config)
	stream := plane.accept(t)
	stream.subscribed(2)
	stream.send(clusters, "1", []string{"a", "1", "b", "1"})
	node.Ack(node.update(t, clusters, "+a=1 +b=1"))
	stream.wantReply(clusters, "1", "")
	stream.send(frontends, "2", []string{"f", "1"})
	node.Nack(node.update(t, frontends, "+f=1"), errors.New("no"))
	stream.wantReply(frontends, "2", "no")
	stream.send(clusters, "3", []string{"a", "2"}, "b")
	node.update(t, clusters, "+a=2 -b") // The node stops before it answers.
	if err := node.stop(); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("state file: %v, %v, want mode 0600", info, err)
	}

	node = start(t, config)
	loaded := node.Loaded()
	if len(loaded[clusters]) != 2 || len(loaded[frontends]) != 0 {
		t.Fatalf("loaded %v, want a and b", loaded)
	}
	want := Resource{Name: "a", Version: "1", Any: &anypb.Any{TypeUrl: clusters, Value: []byte("1")}}
	if got := loaded[clusters]["a"]; got.Name != want.Name || got.Version != want.Version || !proto.Equal(got.Any, want.Any) {
		t.Errorf("loaded %+v, want %+v", got, want)
	}
	first := plane.accept(t).subscribed(2)
	wantVersions(t, first[clusters], "a", "1", "b", "1")
	wantVersions(t, first[frontends])
}

// The first change is written at once. Later ones wait for the pause and go in one write; stopping does not wait.
func TestStateWrites(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	plane := newControlPlane(t)
	config := Config{Addresses: []string{plane.address}, StatePath: path, Types: []string{clusters}}
	node := start(t, config, func(c *Client) { c.known.pause = time.Hour })
	stream := plane.accept(t)
	stream.subscribed(1)
	versions := func() []string {
		known, err := readState(path)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatalf("a reader found %v", err) // Never: a rename replaces the file as a whole.
		}
		var found []string
		for name, r := range known[clusters] {
			found = append(found, name+"="+r.Version)
		}
		slices.Sort(found)
		return found
	}
	stream.send(clusters, "1", []string{"a", "1"})
	node.Ack(node.update(t, clusters, "+a=1"))
	stream.wantReply(clusters, "1", "")
	eventually(t, "first change written", func() bool { return slices.Equal(versions(), []string{"a=1"}) })

	stream.send(clusters, "2", []string{"b", "1"})
	node.Ack(node.update(t, clusters, "+b=1"))
	stream.wantReply(clusters, "2", "")
	stream.send(clusters, "3", []string{"a", "2"})
	node.Ack(node.update(t, clusters, "+a=2"))
	stream.wantReply(clusters, "3", "")
	if got := versions(); !slices.Equal(got, []string{"a=1"}) {
		t.Errorf("written during the pause: %v", got)
	}
	if err := node.stop(); err != nil {
		t.Fatal(err)
	}
	if got := versions(); !slices.Equal(got, []string{"a=2", "b=1"}) {
		t.Errorf("after the stop the file has %v", got)
	}
}

// Changes that come after the pause are written without a stop.
func TestStateIsWrittenAgainAfterThePause(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	s := newStore(path, []string{clusters}, slog.New(slog.DiscardHandler))
	s.pause = time.Nanosecond
	stop, result := make(chan struct{}), make(chan error, 1)
	go func() { result <- s.keep(stop) }()
	for _, version := range []string{"1", "2", "3"} {
		s.apply(Update{Type: clusters, Changed: []Resource{body(clusters, "a", version)}})
		eventually(t, "version "+version+" written", func() bool {
			known, err := readState(path)
			return err == nil && known[clusters]["a"].Version == version
		})
	}
	close(stop)
	if err := <-result; err != nil {
		t.Error(err)
	}
}

// A state that the file has already is not written a second time.
func TestEqualStateIsNotRewritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	plane := newControlPlane(t)
	config := Config{Addresses: []string{plane.address}, StatePath: path, Types: []string{clusters}}
	run := func(want string) os.FileInfo {
		node := start(t, config)
		stream := plane.accept(t)
		stream.subscribed(1)
		stream.send(clusters, "1", []string{"a", "1"}, "gone")
		node.Ack(node.update(t, clusters, want))
		stream.wantReply(clusters, "1", "")
		if err := node.stop(); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return info
	}
	first := run("+a=1 -gone")
	if second := run("+a=1 -gone"); !os.SameFile(first, second) {
		t.Error("the file was replaced, though nothing changed")
	}
}

// A state file that cannot be written disturbs nothing while the node runs, is tried again, and is reported at the end.
func TestStateNotWritable(t *testing.T) {
	folder := t.TempDir()
	blocked := filepath.Join(folder, "file")
	if err := os.WriteFile(blocked, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	plane := newControlPlane(t)
	config := Config{Addresses: []string{plane.address}, StatePath: filepath.Join(blocked, "state"), Types: []string{clusters}}
	quick := func(c *Client) { c.known.pause = time.Nanosecond }
	node := start(t, config, quick)
	stream := plane.accept(t)
	stream.subscribed(1)
	stream.send(clusters, "1", []string{"a", "1"})
	node.Ack(node.update(t, clusters, "+a=1"))
	stream.wantReply(clusters, "1", "")
	if err := node.stop(); err == nil {
		t.Error("Run returned no error, though the state is not on disk")
	}

	node = start(t, config, quick)
	stream = plane.accept(t)
	stream.subscribed(1)
	stream.send(clusters, "1", []string{"a", "1"})
	node.Ack(node.update(t, clusters, "+a=1"))
	stream.wantReply(clusters, "1", "")
	if err := os.Remove(blocked); err != nil {
		t.Fatal(err)
	}
	eventually(t, "written once it can be", func() bool {
		known, err := readState(config.StatePath)
		return err == nil && len(known[clusters]) == 1
	})
}

// lackOf returns how many of the resources of someState, which have their versions, are missing.
func lackOf(t *testing.T, known map[string]map[string]Resource) int {
	t.Helper()
	want, lacks := someState(), 0
	for typeURL, resources := range want {
		for name, r := range resources {
			got, ok := known[typeURL][name]
			if ok && got.Version != r.Version {
				t.Errorf("%s has version %q, want %q", name, got.Version, r.Version)
			}
			if !ok {
				lacks++
			}
		}
	}
	if extra := count(known) + lacks - count(want); extra != 0 {
		t.Errorf("%d resources that were never written: %v", extra, known)
	}
	return lacks
}

// One damaged byte, wherever it is, costs one resource at most and is noticed; a truncated file has what is before its end.
func TestDamagedState(t *testing.T) {
	var written bytes.Buffer
	if err := encodeState(&written, someState()); err != nil {
		t.Fatal(err)
	}
	sound := written.Bytes()
	if known, err := decodeState(sound); err != nil || lackOf(t, known) != 0 {
		t.Fatalf("sound state: %v, %v", known, err)
	}
	for i := range sound {
		for bit := range 8 {
			flipped := bytes.Clone(sound)
			flipped[i] ^= 1 << bit
			known, err := decodeState(flipped)
			if lacks := lackOf(t, known); lacks > 1 || lacks > 0 && err == nil || i >= len(stateHeader) && err == nil {
				t.Errorf("with a wrong bit at %d: %d resources are missing, error %v", i, lacks, err)
			}
		}
		known, err := decodeState(sound[:i])
		if left := i * 3 / len(sound); err == nil || 3-lackOf(t, known) > left+1 {
			t.Errorf("truncated to %d of %d bytes: %v, %v", i, len(sound), known, err)
		}
	}
	if known, err := decodeState([]byte("fairlead state 1\nand what was there")); err == nil || count(known) != 0 {
		t.Errorf("another version: %v, %v", known, err)
	}
}

// What a damaged state file lacks comes from the one before, and the file is made whole at once.
func TestStateBefore(t *testing.T) {
	older := someState()
	older[clusters]["b"] = body(clusters, "b", "1")
	for _, test := range []struct {
		name   string
		damage func(path string, content []byte) error
		want   map[string]string // Versions by name.
	}{
		{"a wrong bit in one record", func(path string, content []byte) error {
			content[bytes.Index(content, []byte(recordMark))+recordHead+2] ^= 1
			return os.WriteFile(path, content, 0o600)
		}, map[string]string{"a": "1", "b": "2", "f": "3"}},
		{"truncated", func(path string, content []byte) error {
			return os.WriteFile(path, content[:len(stateHeader)+recordHead], 0o600)
		}, map[string]string{"a": "1", "b": "1", "f": "3"}},
		{"gone", func(path string, _ []byte) error { return os.Remove(path) }, map[string]string{"a": "1", "b": "1", "f": "3"}},
		{"empty", func(path string, _ []byte) error { return os.WriteFile(path, nil, 0o600) }, map[string]string{"a": "1", "b": "1", "f": "3"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "state")
			for _, state := range []map[string]map[string]Resource{older, someState()} {
				if err := writeState(path, state); err != nil {
					t.Fatal(err)
				}
			}
			content, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := test.damage(path, content); err != nil {
				t.Fatal(err)
			}
			plane := newControlPlane(t)
			node := start(t, Config{Addresses: []string{plane.address}, StatePath: path})
			got := map[string]string{}
			for _, resources := range node.Loaded() {
				for name, r := range resources {
					got[name] = r.Version
				}
			}
			if !maps.Equal(got, test.want) {
				t.Errorf("loaded %v, want %v", got, test.want)
			}
			if err := node.stop(); err != nil {
				t.Fatal(err)
			}
			if known, err := readState(path); err != nil || count(known) != 3 {
				t.Errorf("afterwards the file has %v, %v", known, err)
			}
		})
	}
}

// What a crash during a write left behind is in nobody's way, whoever may read it.
func TestLeftoverOfACrash(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	if err := os.WriteFile(path+".tmp", []byte("half"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := writeState(path, someState()); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("state file: %v, %v, want mode 0600", info, err)
	}
	if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) != 1 {
		t.Errorf("folder has %v, %v, want the state file alone", entries, err)
	}
}

// Equal states make equal files, whatever the order of the maps.
func TestStateIsDeterministic(t *testing.T) {
	var first bytes.Buffer
	if err := encodeState(&first, someState()); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		var again bytes.Buffer
		if err := encodeState(&again, someState()); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(first.Bytes(), again.Bytes()) {
			t.Fatal("two encodings of one state differ")
		}
	}
}

// Whatever is in a record with the right checksum, or in no record, is read without a panic, and what is accepted can be
// written again.
func FuzzDecodeState(f *testing.F) {
	var sound bytes.Buffer
	if err := encodeState(&sound, someState()); err != nil {
		f.Fatal(err)
	}
	f.Add(sound.Bytes())
	f.Add(sound.Bytes()[len(stateHeader)+recordHead:])
	f.Add([]byte(stateHeader + recordMark + "\xff\xff\xff\xff\xff\xff\xff\xff"))
	f.Add([]byte("fairlead state 1\n"))
	f.Fuzz(func(t *testing.T, content []byte) {
		var record bytes.Buffer
		if err := writeRecord(&record, recordMark, content); err != nil {
			t.Fatal(err)
		}
		for _, content := range [][]byte{content, record.Bytes()} {
			known, _ := decodeState(content)
			var again bytes.Buffer
			if err := encodeState(&again, known); err != nil {
				t.Fatal(err)
			}
			if second, err := decodeState(again.Bytes()); err != nil || count(second) != count(known) {
				t.Fatalf("%d resources became %d: %v", count(known), count(second), err)
			}
		}
	})
}

// BenchmarkWriteState writes the state of 10,000 Services: a cluster and a frontend each, 5.6 MB.
func BenchmarkWriteState(b *testing.B) {
	s := newStore(filepath.Join(b.TempDir(), "state"), []string{clusters, frontends}, slog.New(slog.DiscardHandler))
	for i := range 10_000 {
		for typeURL, size := range map[string]int{clusters: 300, frontends: 150} {
			name := fmt.Sprintf("10.96.%d.%d:80/TCP", i/250, i%250)
			s.known[typeURL][name] = body(typeURL, name, strings.Repeat("v", size))
		}
	}
	for b.Loop() {
		s.revision++
		if err := s.write(); err != nil {
			b.Fatal(err)
		}
	}
}

func someState() map[string]map[string]Resource {
	return map[string]map[string]Resource{
		clusters:  {"a": body(clusters, "a", "1"), "b": body(clusters, "b", "2")},
		frontends: {"f": body(frontends, "f", "3")},
	}
}

func body(typeURL, name, version string) Resource {
	return Resource{Name: name, Version: version, Any: &anypb.Any{TypeUrl: typeURL, Value: []byte(version)}}
}
