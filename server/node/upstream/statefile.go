package upstream

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"

	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
)

// The state file: a line that says what it is, then every resource as a record, sorted by type URL and name, then a record
// that counts them. A record is recordMark, the length of what follows the checksum, the CRC-32C of length and content,
// and the content: an envoy.service.discovery.v3.Resource, whose body names its type. So whatever is damaged costs the
// records that it is in: the next one is found by its mark, and is sound by its checksum. A file of another version has
// other marks; the client replaces it and never interprets it.
const (
	stateHeader = "fairlead state 2\n"
	recordMark  = "\xfaFL2" // No UTF-8, as names and types are.
	endMark     = "\xfaFLE" // Of the last record, whose content is the number of the others.
	recordHead  = len(recordMark) + 4 + 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// PreviousState returns where the state file before the present one is kept.
func PreviousState(path string) string { return path + ".1" }

// readState returns the resources of a state file by type URL and name. An error says what is damaged or missing; then the
// resources are those that are sound.
func readState(path string) (map[string]map[string]Resource, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return decodeState(content)
}

func decodeState(content []byte) (map[string]map[string]Resource, error) {
	known := map[string]map[string]Resource{}
	want := -1
	for len(content) > 0 {
		mark, body, ok := nextRecord(content)
		switch {
		case !ok:
			content = content[1:]
			if next := bytes.IndexByte(content, recordMark[0]); next >= 0 {
				content = content[next:]
				continue
			}
			content = nil
			continue
		case mark == endMark:
			want = int(binary.BigEndian.Uint32(body))
		default:
			add(known, body)
		}
		content = content[recordHead+len(body):]
	}
	switch found := count(known); {
	case want < 0:
		return known, fmt.Errorf("its end is damaged or missing; %d resources are sound", found)
	case found < want:
		return known, fmt.Errorf("%d of %d resources are damaged", want-found, want)
	}
	return known, nil
}

// nextRecord returns the record that content begins with, if one does that is sound.
func nextRecord(content []byte) (mark string, body []byte, ok bool) {
	if len(content) < recordHead {
		return "", nil, false
	}
	mark = string(content[:len(recordMark)])
	length := binary.BigEndian.Uint32(content[len(recordMark):])
	if mark != recordMark && mark != endMark || uint64(length) > uint64(len(content)-recordHead) || mark == endMark && length != 4 {
		return "", nil, false
	}
	body = content[recordHead : recordHead+int(length)]
	return mark, body, checksum(content[len(recordMark):len(recordMark)+4], body) == binary.BigEndian.Uint32(content[len(recordMark)+4:])
}

func checksum(length, body []byte) uint32 {
	return crc32.Update(crc32.Checksum(length, castagnoli), castagnoli, body)
}

// add adds the resource of a record, if it is one.
func add(known map[string]map[string]Resource, body []byte) {
	record := &discoverypb.Resource{}
	if proto.Unmarshal(body, record) != nil {
		return
	}
	typeURL := record.GetResource().GetTypeUrl()
	if sound(typeURL, record) != nil {
		return
	}
	if known[typeURL] == nil {
		known[typeURL] = map[string]Resource{}
	}
	known[typeURL][record.GetName()] = Resource{Name: record.GetName(), Version: record.GetVersion(), Any: record.GetResource()}
}

// writeState replaces the state file, and keeps the one before. A crash at any moment leaves the old file or the new one,
// the old one perhaps in its new place.
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
	if err := os.Rename(path, PreviousState(path)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
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
	if _, err := io.WriteString(w, stateHeader); err != nil {
		return err
	}
	err := inOrder(known, func(r Resource) error {
		body, err := proto.Marshal(r.Proto())
		if err != nil {
			return err
		}
		return writeRecord(w, recordMark, body)
	})
	if err != nil {
		return err
	}
	return writeRecord(w, endMark, binary.BigEndian.AppendUint32(nil, uint32(count(known))))
}

func writeRecord(w io.Writer, mark string, body []byte) error {
	length := binary.BigEndian.AppendUint32(nil, uint32(len(body)))
	head := binary.BigEndian.AppendUint32(append([]byte(mark), length...), checksum(length, body))
	if _, err := w.Write(head); err != nil {
		return err
	}
	_, err := w.Write(body)
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
