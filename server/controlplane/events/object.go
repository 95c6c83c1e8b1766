package events

import (
	"context"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fairlead/fairlead/translate/model"
)

// keyOf returns the object of a problem; false for a file or another thing that has no Events.
func keyOf(p model.Problem) (model.ObjectKey, bool) {
	kind, name, _ := strings.Cut(p.Object, " ")
	namespace, rest, namespaced := strings.Cut(name, "/")
	switch key := (model.ObjectKey{Kind: model.ObjectKind(kind), Namespace: namespace, Name: rest}); key.Kind {
	case model.KindService, model.KindEndpointSlice:
		return key, namespaced
	case model.KindNode:
		return nodeKey(name), name != "" && !namespaced
	}
	return model.ObjectKey{}, false
}

// nodeKey returns the key of a Node object.
func nodeKey(name string) model.ObjectKey { return model.ObjectKey{Kind: model.KindNode, Name: name} }

// reference returns what an Event is attached by. The UID has to be that of the object: kubectl describe selects by it, and an
// object that was made again under the name has a history of its own.
func (w *Writer) reference(ctx context.Context, key model.ObjectKey) (*corev1.ObjectReference, error) {
	var object metav1.Object
	var err error
	version := "v1"
	switch key.Kind {
	case model.KindService:
		object, err = w.cfg.Client.CoreV1().Services(key.Namespace).Get(ctx, key.Name, metav1.GetOptions{})
	case model.KindEndpointSlice:
		version = "discovery.k8s.io/v1"
		object, err = w.cfg.Client.DiscoveryV1().EndpointSlices(key.Namespace).Get(ctx, key.Name, metav1.GetOptions{})
	case model.KindNode:
		object, err = w.cfg.Client.CoreV1().Nodes().Get(ctx, key.Name, metav1.GetOptions{})
	default:
		err = fmt.Errorf("%s has no Events", key)
	}
	if err != nil {
		return nil, err
	}
	return &corev1.ObjectReference{
		APIVersion: version, Kind: string(key.Kind), Namespace: key.Namespace, Name: key.Name,
		UID: object.GetUID(), ResourceVersion: object.GetResourceVersion(),
	}, nil
}
