package source

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"

	kjson "sigs.k8s.io/json"
)

const (
	// maxDoubts is how many fields of one object are doubted. The first few show what is wrong with them.
	maxDoubts = 10
	// maxQuoted is how many bytes of a text are shown.
	maxQuoted = 60
)

// checkMapping returns an error that names what is there in place of an object.
func checkMapping(content []byte) error {
	content = bytes.TrimSpace(content)
	switch content[0] {
	case '{':
		return nil
	case '[':
		return errors.New("a list, not a Kubernetes object; write each object as a document of its own, or all as the items of a v1 List")
	case '"':
		var text string
		_ = json.Unmarshal(content, &text) // It is valid; otherwise it is shown as nothing.
		return fmt.Errorf("text, not a Kubernetes object: it begins %s; replace or remove it (kubectl get writes manifests with -o yaml or -o json)", shortQuote(text))
	default:
		return fmt.Errorf("the value %s, not a Kubernetes object; replace or remove it", content)
	}
}

// shortQuote returns the first line of a text in quotes, or as much as there is room for.
func shortQuote(text string) string {
	line, _, more := strings.Cut(text, "\n")
	if len(line) > maxQuoted {
		line, more = strings.ToValidUTF8(line[:maxQuoted], ""), true
	}
	if more {
		line += "…"
	}
	return fmt.Sprintf("%q", line)
}

// plain returns a decoder's error in the words of manifests instead of Go's.
func plain(err error) error {
	var mismatch *json.UnmarshalTypeError
	if !errors.As(err, &mismatch) {
		return errors.New(strings.TrimPrefix(err.Error(), "json: "))
	}
	is, should, hint := valueWords(mismatch.Value), typeWords(mismatch.Type), ""
	if should == "text" && (mismatch.Value == "bool" || strings.HasPrefix(mismatch.Value, "number")) {
		hint = " (put it in quotes)"
	}
	field := mismatch.Field
	if field == "" {
		field = "a value"
	}
	return fmt.Errorf("%s is %s where %s is expected%s", field, is, should, hint)
}

// valueWords names the kind of a JSON value. The decoder's word may have the value behind it.
func valueWords(value string) string {
	sort, rest, _ := strings.Cut(value, " ")
	switch sort {
	case "string":
		return "text"
	case "bool":
		return "true or false"
	case "array":
		return "a list"
	case "object":
		return "a mapping"
	case "number":
		if rest == "" {
			return "a number"
		}
		fallthrough
	default:
		return strings.TrimSpace("the " + sort + " " + rest)
	}
}

// typeWords names what a Go type can hold.
func typeWords(t reflect.Type) string {
	switch t.Kind() {
	case reflect.String:
		return "text"
	case reflect.Bool:
		return "true or false"
	case reflect.Slice, reflect.Array:
		return "a list"
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return fmt.Sprintf("a whole number of at most %d bits", t.Bits())
	case reflect.Pointer:
		return typeWords(t.Elem())
	case reflect.Map, reflect.Struct:
		return "a mapping"
	default:
		return "another value"
	}
}

// fieldDoubt returns what is wrong with a field that its object does not have, or has twice. Object may be nil.
func fieldDoubt(doubt error, object any) error {
	var field kjson.FieldError
	switch {
	case !errors.As(doubt, &field):
		return doubt
	case strings.HasPrefix(doubt.Error(), "duplicate"):
		return fmt.Errorf("%s stands there twice, and the last one counts; remove one of the two", field.FieldPath())
	}
	path := field.FieldPath()
	name := path[strings.LastIndexByte(path, '.')+1:]
	if right := spelling(reflect.TypeOf(object), name, 0); right != "" {
		return fmt.Errorf("%s is no field of this object, and is passed over; write %s", path, right)
	}
	return fmt.Errorf("%s is no field of this object, and is passed over; correct or remove it", path)
}

// maxDepth is deeper than any field of a Service, an EndpointSlice or a Node that is written by hand, and ends types that
// contain themselves.
const maxDepth = 8

// spelling returns a field of a type, or of its fields, that differs from a name in capital and small letters only.
func spelling(t reflect.Type, name string, depth int) string {
	for t != nil && (t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice || t.Kind() == reflect.Map) {
		t = t.Elem()
	}
	if t == nil || t.Kind() != reflect.Struct || depth == maxDepth {
		return ""
	}
	for i := range t.NumField() {
		field := t.Field(i)
		tag, _, _ := strings.Cut(field.Tag.Get("json"), ",")
		if tag != "" && tag != name && strings.EqualFold(tag, name) {
			return tag
		}
		if right := spelling(field.Type, name, depth+1); right != "" {
			return right
		}
	}
	return ""
}
