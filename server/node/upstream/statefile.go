package upstream

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"

	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/encoding/protodelim"
)

// The state file: one line with the format's name and version, then every resource as a length-delimited
// envoy.service.discovery.v3.Resource (whose body names its type), sorted by type URL and name, then the SHA-256 of all
// before. A file of another version counts as damaged: the client replaces it and never interprets it.
const stateHeader = "fairlead state 1\n"

// readState returns the resources of a state file by type URL and name. It returns an error unless the whole file is sound.
func readState(path string) (map[string]map[string]Resource, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return decodeState(content)
}

func decodeState(content []byte) (map[string]map[string]Resource, error) {
	if len(content) < len(stateHeader)+sha256.Size {
		return nil, fmt.Errorf("truncated: %d bytes", len(content))
	}
	body, sum := content[:len(content)-sha256.Size], content[len(content)-sha256.Size:]
	if actual := sha256.Sum256(body); !bytes.Equal(actual[:], sum) {
		return nil, errors.New("checksum does not match: truncated or damaged")
	}
	records, ok := bytes.CutPrefix(body, []byte(stateHeader))
	if !ok {
		return nil, fmt.Errorf("not in the format %q", stateHeader[:len(stateHeader)-1])
	}
	known := map[string]map[string]Resource{}
	reader := bytes.NewReader(records)
	limited := protodelim.UnmarshalOptions{MaxSize: int64(len(records))} // No record is larger than the file.
	for {
		record := &discoverypb.Resource{}
		switch err := limited.UnmarshalFrom(reader, record); {
		case errors.Is(err, io.EOF):
			return known, nil
		case err != nil:
			return nil, fmt.Errorf("resource %d: %w", count(known), err)
		}
		typeURL := record.GetResource().GetTypeUrl()
		if err := sound(typeURL, record); err != nil {
			return nil, err
		}
		if known[typeURL] == nil {
			known[typeURL] = map[string]Resource{}
		}
		known[typeURL][record.GetName()] = Resource{
			Name: record.GetName(), Version: record.GetVersion(), Any: record.GetResource(),
		}
	}
}

// writeState replaces the state file, so that a crash at any moment leaves the old file or the new one.
func writeState(path string, known map[string]map[string]Resource) error {
	folder := filepath.Dir(path)
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return err
	}
	temporary := path + ".tmp"
	if err := os.Remove(temporary); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := writeSynced(temporary, known); err != nil {
		return errors.Join(err, os.Remove(temporary))
	}
	if err := os.Rename(temporary, path); err != nil {
		return err
	}
	return syncFolder(folder)
}

func writeSynced(path string, known map[string]map[string]Resource) (err error) {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	buffered := bufio.NewWriterSize(file, 1<<16)
	if err := encodeState(buffered, known); err != nil {
		return err
	}
	if err := buffered.Flush(); err != nil {
		return err
	}
	return file.Sync()
}

// encodeState writes one resource after the other, so that its memory does not grow with the state.
func encodeState(w io.Writer, known map[string]map[string]Resource) error {
	sum := sha256.New()
	both := io.MultiWriter(w, sum)
	if _, err := io.WriteString(both, stateHeader); err != nil {
		return err
	}
	err := inOrder(known, func(r Resource) error {
		_, err := protodelim.MarshalTo(both, r.Proto())
		return err
	})
	if err != nil {
		return err
	}
	_, err = w.Write(sum.Sum(nil))
	return err
}

// syncFolder makes the rename durable: before it a power cut could bring the old file back.
func syncFolder(path string) error {
	folder, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(folder.Sync(), folder.Close())
}

// inOrder calls f for every resource, sorted by type URL and name, until it fails: equal state makes equal files.
func inOrder(known map[string]map[string]Resource, f func(Resource) error) error {
	for _, t := range slices.Sorted(maps.Keys(known)) {
		for _, name := range slices.Sorted(maps.Keys(known[t])) {
			if err := f(known[t][name]); err != nil {
				return err
			}
		}
	}
	return nil
}

func count(known map[string]map[string]Resource) int {
	n := 0
	for _, resources := range known {
		n += len(resources)
	}
	return n
}
