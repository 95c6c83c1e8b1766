package source

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/fairlead/fairlead/translate/model"
)

// manifest is an object that is read.
type manifest interface {
	runtime.Object
	metav1.Object
}

// knownKind is a kind of object that is read.
type knownKind struct {
	apiVersion string
	kind       model.ObjectKind
	partial    bool // Only its metadata is read.
	empty      func() manifest
}

var knownKinds = []knownKind{
	{"v1", model.KindService, false, func() manifest { return &corev1.Service{} }},
	{"v1", model.KindNode, false, func() manifest { return &corev1.Node{} }},
	{"v1", model.KindEndpoints, true, func() manifest { return &metav1.PartialObjectMetadata{} }},
	{"discovery.k8s.io/v1", model.KindEndpointSlice, false, func() manifest { return &discoveryv1.EndpointSlice{} }},
}

// anyKind stands for the kind of the objects of a v1 List, which each say it themselves.
var anyKind = &knownKind{apiVersion: "v1"}

// judge returns the kind that an object, or the objects of a list, say that they are; nil for one that is not read. The
// error is about an object that its author will have meant to be read.
func judge(head *header, content []byte) (*knownKind, model.Reason, error) {
	itemType := head.itemType()
	if !head.isList() {
		itemType = head.TypeMeta
	}
	switch {
	case head.APIVersion == "" && head.Kind == "":
		return nil, model.InvalidObject, fmt.Errorf("apiVersion and kind are missing, there is %s; is this a Kubernetes object?", fieldNames(content))
	case head.APIVersion == "v1" && head.Kind == "Status":
		return nil, model.InvalidObject, fmt.Errorf("an answer of the API server, not an object: %q; ask it again for the objects", head.Message)
	case head.APIVersion == "v1" && head.Kind == "List":
		return anyKind, "", nil
	}
	for i, k := range knownKinds {
		if itemType.APIVersion == k.apiVersion && itemType.Kind == string(k.kind) {
			return &knownKinds[i], "", nil
		}
	}
	return nil, model.UnsupportedObject, misnamed(head, itemType)
}

// misnamed returns an error if an object's kind is almost that of one that is read. Kinds of the same name in groups of
// their own, such as Knative's Services, are other kinds.
func misnamed(head *header, itemType metav1.TypeMeta) error {
	group, _, hasGroup := strings.Cut(head.APIVersion, "/")
	if head.Kind == "" {
		return errors.New("kind is missing; is this a Kubernetes object?")
	}
	for _, k := range knownKinds {
		almost := strings.EqualFold(itemType.Kind, string(k.kind)) || strings.EqualFold(itemType.Kind, string(k.kind)+"s")
		if !almost || hasGroup && group != "discovery.k8s.io" {
			continue
		}
		suffix := strings.TrimPrefix(head.Kind, itemType.Kind)
		if group == "discovery.k8s.io" && k.kind == model.KindEndpointSlice && itemType.Kind == string(k.kind) {
			return fmt.Errorf("%s %s is not read, and no Kubernetes since 1.25 knows it; write apiVersion: %s, and nodeName and zone where there is topology", head.APIVersion, head.Kind, k.apiVersion)
		}
		return fmt.Errorf("apiVersion %q with kind %q is nothing that Kubernetes knows; write apiVersion: %s and kind: %s%s", head.APIVersion, head.Kind, k.apiVersion, k.kind, suffix)
	}
	if head.APIVersion == "" {
		return fmt.Errorf("apiVersion is missing beside kind: %s; is this a Kubernetes object?", head.Kind)
	}
	return nil
}

// isList reports whether an object is a list of others.
func (h *header) isList() bool { return strings.HasSuffix(h.Kind, "List") }

// itemType returns the type of a list's objects, which they need not state; nothing for a v1 List.
func (h *header) itemType() metav1.TypeMeta {
	if kind := strings.TrimSuffix(h.Kind, "List"); kind != "" {
		return metav1.TypeMeta{APIVersion: h.APIVersion, Kind: kind}
	}
	return metav1.TypeMeta{}
}

// kindName returns an object's kind for people, with its group where the kind alone would mislead.
func (h *header) kindName() string {
	if slices.ContainsFunc(knownKinds, func(k knownKind) bool { return string(k.kind) == h.Kind }) {
		return h.Kind + " of " + h.APIVersion
	}
	return h.Kind
}

// fieldNames lists the first fields of a mapping.
func fieldNames(content []byte) string {
	var fields map[string]json.RawMessage
	if json.Unmarshal(content, &fields) != nil || len(fields) == 0 {
		return "nothing"
	}
	const shown = 3
	var names []string
	for _, name := range slices.Sorted(maps.Keys(fields))[:min(shown, len(fields))] {
		names = append(names, shortQuote(name))
	}
	if len(fields) > shown {
		names = append(names, "…")
	}
	return strings.Join(names, ", ")
}

// Kinds counts objects by their kind.
type Kinds map[string]int

// String returns 3 Deployments, 1 ConfigMap and so on, in order of the kinds; nothing if there are none.
func (k Kinds) String() string {
	var all []string
	for _, kind := range slices.Sorted(maps.Keys(k)) {
		name, of, qualified := strings.Cut(kind, " of ")
		if k[kind] != 1 {
			name = plural(name)
		}
		if qualified {
			name += " of " + of
		}
		all = append(all, fmt.Sprintf("%d %s", k[kind], name))
	}
	return strings.Join(all, ", ")
}

// plural returns the English plural of a kind.
func plural(kind string) string {
	switch {
	case strings.HasSuffix(kind, "points"): // Endpoints is one already.
		return kind
	case strings.HasSuffix(kind, "s"), strings.HasSuffix(kind, "x"):
		return kind + "es"
	case strings.HasSuffix(kind, "cy"), strings.HasSuffix(kind, "ty"):
		return strings.TrimSuffix(kind, "y") + "ies"
	default:
		return kind + "s"
	}
}

// setDefaults fills in what the API server fills in when an object is created and what matters here. Ports of slices
// without a name would otherwise be passed over.
func setDefaults(o manifest) {
	if _, node := o.(*corev1.Node); node {
		o.SetNamespace("")
	} else if o.GetNamespace() == "" {
		o.SetNamespace(metav1.NamespaceDefault)
	}
	if slice, ok := o.(*discoveryv1.EndpointSlice); ok {
		for i := range slice.Ports {
			if slice.Ports[i].Name == nil {
				slice.Ports[i].Name = new(string)
			}
		}
	}
}
