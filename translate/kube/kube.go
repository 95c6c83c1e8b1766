// Package kube reads Kubernetes objects: what comes in is a Service, an EndpointSlice or a Node as the API server has it,
// what goes out is what it means to Fairlead, and what is wrong with it.
//
// It decides which objects matter and which of their parts can be used; it never decides what happens to a connection.
// A part that cannot be used is left out and reported, and the rest of the object counts. Objects are only read, and
// what is returned shares nothing with them that could change.
package kube

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/fairlead/fairlead/translate/model"
)

// LabelServiceProxyName is the label that assigns a Service to the proxy named by its value, instead of the cluster's
// default one.
const LabelServiceProxyName = "service.kubernetes.io/service-proxy-name"

// Reader reads objects. The zero Reader is the cluster's default proxy.
type Reader struct {
	// ServiceProxyName selects the Services that are ours: those whose label LabelServiceProxyName has this value or, if it is
	// empty, those without the label.
	ServiceProxyName string
}

// Read returns what an object means. Seen is when the object was seen to be as it is; it stands for the time of the
// change where the object itself does not hold it. An object of a kind that Fairlead does not read has no key.
func (r Reader) Read(o runtime.Object, seen time.Time) model.Object {
	var read model.Object
	var change *model.ObjectVersion
	switch o := o.(type) {
	case *corev1.Service:
		read = r.service(o)
		if read.Service != nil {
			change = &read.Service.Version
		}
	case *discoveryv1.EndpointSlice:
		read = slice(o)
		if read.Slice != nil {
			change = &read.Slice.Version
		}
	case *corev1.Node:
		read = node(o)
		if read.Node != nil {
			change = &read.Node.Version
		}
	case *metav1.PartialObjectMetadata:
		if o.Kind == string(model.KindEndpoints) {
			read = endpoints(o)
		}
	}
	if change != nil && change.At.IsZero() {
		change.At = seen
	}
	return read
}

// keyOf returns an object's key.
func keyOf(kind model.ObjectKind, o metav1.Object) model.ObjectKey {
	return model.ObjectKey{Kind: kind, Namespace: o.GetNamespace(), Name: o.GetName()}
}

// changeOf returns an object's version and when it was written: the newest entry of its managed fields, which every
// writer keeps, else its creation.
func versionOf(key model.ObjectKey, o metav1.Object) model.ObjectVersion {
	at := o.GetCreationTimestamp().Time
	for _, f := range o.GetManagedFields() {
		if f.Time != nil && f.Time.After(at) {
			at = f.Time.Time
		}
	}
	return model.ObjectVersion{Object: key.String(), ResourceVersion: o.GetResourceVersion(), At: at.UTC()}
}
