package source

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"sigs.k8s.io/yaml"
)

// document is what stands between two separators of a file, or one of several JSON values that stand there.
type document struct {
	text []byte
	line int // How many lines of the file come before it.
}

// toUTF8 returns a file's text without its byte order mark. Windows PowerShell writes UTF-16 where output is redirected,
// and such a mark before UTF-8. The YAML specification tells UTF-16 without a mark by the zero bytes beside the first
// character, which is an ASCII one in every manifest.
func toUTF8(data []byte) ([]byte, error) {
	switch {
	case bytes.HasPrefix(data, []byte("\xef\xbb\xbf")):
		data = data[3:]
	case bytes.HasPrefix(data, []byte("\xff\xfe\x00\x00")), bytes.HasPrefix(data, []byte("\x00\x00")):
		return nil, errors.New("not text in UTF-8 or UTF-16; save the file as UTF-8")
	case bytes.HasPrefix(data, []byte("\xff\xfe")):
		data = fromUTF16(data[2:], binary.LittleEndian)
	case bytes.HasPrefix(data, []byte("\xfe\xff")):
		data = fromUTF16(data[2:], binary.BigEndian)
	case len(data) >= 2 && data[0] != 0 && data[1] == 0:
		data = fromUTF16(data, binary.LittleEndian)
	case len(data) >= 2 && data[0] == 0:
		data = fromUTF16(data, binary.BigEndian)
	}
	if !utf8.Valid(data) || bytes.IndexByte(data, 0) >= 0 {
		return nil, errors.New("not text in UTF-8 or UTF-16, but perhaps something compressed or binary; save the file as UTF-8 text")
	}
	if bytes.IndexByte(data, '\n') < 0 {
		data = bytes.ReplaceAll(data, []byte("\r"), []byte("\n")) // A carriage return alone ends a line of YAML, too.
	}
	return bytes.ReplaceAll(data, []byte("\n\xef\xbb\xbf"), []byte("\n")), nil // Files may have been put one after another.
}

// fromUTF16 returns text in UTF-8. What is not UTF-16 becomes the replacement character.
func fromUTF16(data []byte, order binary.ByteOrder) []byte {
	units := make([]uint16, len(data)/2)
	for i := range units {
		units[i] = order.Uint16(data[2*i:])
	}
	return []byte(string(utf16.Decode(units)))
}

// splitDocuments splits a file at its lines of three dashes or dots, before anything is parsed: so a broken document
// cannot hide those after it. What follows the dashes on their line is part of the document. Empty documents do not
// count, and neither do the directives (%YAML 1.2) that may come before the dashes.
func splitDocuments(data []byte) []document {
	var all []document
	start, startLine := 0, 0
	keep := func(end int, directives bool) {
		text := data[start:end]
		if len(bytes.TrimSpace(text)) > 0 && !(directives && onlyDirectives(text)) {
			all = append(all, document{text, startLine})
		}
	}
	line := 0
	for at := 0; at < len(data); line++ {
		end := len(data)
		if i := bytes.IndexByte(data[at:], '\n'); i >= 0 {
			end = at + i + 1
		}
		if marker := data[at:end]; isMarker(marker) {
			keep(at, marker[0] == '-')
			start, startLine = at+len("---"), line
		}
		at = end
	}
	keep(len(data), false)
	return all
}

// isMarker reports whether a line separates documents.
func isMarker(line []byte) bool {
	if !bytes.HasPrefix(line, []byte("---")) && !bytes.HasPrefix(line, []byte("...")) {
		return false
	}
	return len(line) == 3 || strings.IndexByte(" \t\r\n", line[3]) >= 0
}

// onlyDirectives reports whether a text is directives and comments.
func onlyDirectives(text []byte) bool {
	for line := range bytes.Lines(text) {
		if line = bytes.TrimSpace(line); len(line) > 0 && line[0] != '%' && line[0] != '#' {
			return false
		}
	}
	return true
}

// values returns a document's JSON values, of which there may be several one after another, as jq and kubectl get
// --watch write them, with lines of comment between them. What does not go on as JSON is a document of its own, in YAML
// as a rule.
func (d document) values() []document {
	var all []document
	for rest := d; ; {
		rest = rest.from(commentEnd(rest.text))
		if len(rest.text) == 0 {
			return all
		}
		decoder := json.NewDecoder(bytes.NewReader(rest.text))
		var value json.RawMessage
		if rest.text[0] != '{' && rest.text[0] != '[' || decoder.Decode(&value) != nil {
			if len(all) == 0 { // With the comments before it: the parser has its own idea of where a document begins.
				return []document{d}
			}
			return append(all, rest)
		}
		all = append(all, document{value, rest.line})
		rest = rest.from(int(decoder.InputOffset()))
	}
}

// from returns the rest of a document.
func (d document) from(at int) document {
	return document{d.text[at:], d.line + bytes.Count(d.text[:at], []byte("\n"))}
}

// commentEnd returns how much of a text is comments and empty lines before anything else, and indentation.
func commentEnd(text []byte) int {
	at := 0
	for line := range bytes.Lines(text) {
		trimmed := bytes.TrimSpace(line)
		if len(trimmed) > 0 && trimmed[0] != '#' {
			return at + bytes.IndexByte(line, trimmed[0])
		}
		at += len(line)
	}
	return at
}

// toJSON returns a document as JSON, and what is doubtful about it. Parsing YAML takes several times as long as all else
// that reading an object takes, so a document that is JSON already is taken as it is.
func (d document) toJSON() (content []byte, doubts []string, err error) {
	if trimmed := bytes.TrimSpace(d.text); trimmed[0] == '{' && json.Valid(trimmed) {
		return trimmed, nil, nil
	}
	if err := d.checkEnd(); err != nil {
		return nil, nil, d.explain(err)
	}
	content, err = yaml.YAMLToJSONStrict(d.text)
	if err != nil && strings.Contains(err.Error(), alreadySet) {
		doubts = d.duplicates(err.Error())
		content, err = yaml.YAMLToJSON(d.text)
	}
	if err != nil {
		return nil, nil, d.explain(err)
	}
	return content, doubts, nil
}

// checkEnd parses a document whose root is indented or in brackets as the value of a key. Alone, such a root may end
// before its text does, and the parser reports no error for the rest.
func (d document) checkEnd() error {
	if !mayEndEarly(d.text) {
		return nil
	}
	_, err := yaml.YAMLToJSON(append([]byte("root:\n "), bytes.ReplaceAll(d.text, []byte("\n"), []byte("\n "))...))
	if err == nil {
		return nil
	}
	// The key has a line of its own.
	return errors.New(moveLines(err.Error(), -1))
}

// mayEndEarly reports whether a document begins otherwise than with a key at the start of a line.
func mayEndEarly(text []byte) bool {
	for line := range bytes.Lines(text) {
		if trimmed := bytes.TrimSpace(line); len(trimmed) > 0 && trimmed[0] != '#' {
			return strings.IndexByte(" \t{[!&\"'", line[0]) >= 0
		}
	}
	return false
}

// What the parser says of keys that stand twice in a mapping.
const alreadySet = "already set in map"

var (
	duplicateKey = regexp.MustCompile(`line (\d+): key (.*) ` + alreadySet)
	lineNumber   = regexp.MustCompile(`line (\d+)`)
)

// duplicates names the keys that stand twice in one mapping. A merge key (<<) looks the same to the parser where another
// key overrides what it brings in, which is what it is for.
func (d document) duplicates(complaint string) []string {
	if bytes.Contains(d.text, []byte("<<")) {
		return nil
	}
	var all []string
	for _, m := range duplicateKey.FindAllStringSubmatch(complaint, -1) {
		all = append(all, fmt.Sprintf("%s: the key %s stands there twice, and the last one counts; remove one of the two", moveLines("line "+m[1], d.line), m[2]))
	}
	return all
}

// explain returns a parser's error with lines of the file, and without the parser's own types.
func (d document) explain(err error) error {
	message := strings.TrimPrefix(err.Error(), "yaml: ")
	message = strings.TrimPrefix(message, "error converting YAML to JSON: ")
	message = strings.TrimPrefix(message, "json: ")
	if strings.Contains(message, "map key") { // Which is shown as a Go value.
		message = "a key is not a text"
	}
	message = moveLines(message, d.line)
	if !bytes.Contains(d.text, []byte("kind")) { // A program's message, as a rule.
		message += fmt.Sprintf(" (it begins %s)", shortQuote(string(bytes.TrimSpace(d.text))))
	}
	switch {
	case bytes.Contains(d.text, []byte("{{")):
		message += " (is it a template that has to be rendered first, as by helm template?)"
	case indentedByTab.Match(d.text):
		message += " (YAML is indented by spaces, not by tabs)"
	}
	return errors.New(message)
}

var indentedByTab = regexp.MustCompile(`(?m)^ *\t`)

// moveLines adds to the numbers of lines in a message.
func moveLines(message string, lines int) string {
	return lineNumber.ReplaceAllStringFunc(message, func(found string) string {
		n, _ := strconv.Atoi(strings.TrimPrefix(found, "line "))
		return fmt.Sprintf("line %d", max(n+lines, 1)) // The parser may count from 0.
	})
}
