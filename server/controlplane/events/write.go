package events

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"

	"github.com/fairlead/fairlead/translate/model"
)

const (
	// maxMessage is the longest message that the API takes, in bytes; a longer one ends in cut.
	maxMessage = 1024
	cut        = "..."
	// maxPrefix is how much of its object's name an Event's name has, in bytes. Names have 253 at most.
	maxPrefix = 200
)

// trouble is something that is wrong with an object, and how it is said to be over.
type trouble struct {
	object           model.ObjectKey
	reason, message  string
	ending, endsWith string // The reason and the message of the Event that ends it.
}

// write tells people of a trouble, or that it is over, and reports whether no more need be done: not if there have been too many
// Events, or if the API server does not answer. About an object that does not exist there is nothing to tell.
//
// The names of the two Events follow from what they say, and the API server remembers which was the last. So a replica that takes
// over from another, or starts again, does not repeat it, which client-go's recorder would: that remembers in its own process.
func (w *Writer) write(ctx context.Context, t trouble, over bool) (done bool) {
	if !w.limit.TryAccept() {
		return false
	}
	err := w.tell(ctx, t, over)
	if apierrors.IsNotFound(err) {
		return true
	}
	if err != nil {
		w.failed = err
	}
	return err == nil
}

func (w *Writer) tell(ctx context.Context, t trouble, over bool) error {
	reference, err := w.reference(ctx, t.object)
	if err != nil {
		return err
	}
	namespace := reference.Namespace
	if namespace == "" {
		namespace = metav1.NamespaceDefault // That of Events about what has none.
	}
	api := w.cfg.Client.CoreV1().Events(namespace)
	warning := w.newEvent(reference, corev1.EventTypeWarning, t.reason, t.message)
	normal := w.newEvent(reference, corev1.EventTypeNormal, t.ending, t.endsWith)
	warned, err := last(ctx, api, warning.Name)
	if err != nil {
		return err
	}
	ended, err := last(ctx, api, normal.Name)
	if err != nil {
		return err
	}
	lasts := warned != nil && (ended == nil || ended.LastTimestamp.Before(&warned.LastTimestamp))
	switch {
	case over && !lasts:
		return nil // Nobody was told that it began.
	case over:
		return put(ctx, api, ended, normal)
	case lasts && w.now().Sub(warned.LastTimestamp.Time) < repeat:
		return nil // Another replica has told it.
	}
	return put(ctx, api, warned, warning)
}

// newEvent returns an Event about an object.
func (w *Writer) newEvent(of *corev1.ObjectReference, kind, reason, message string) *corev1.Event {
	if len(message) > maxMessage {
		message = strings.ToValidUTF8(message[:maxMessage-len(cut)], "") + cut
	}
	sum := sha256.Sum256([]byte(string(of.UID) + " " + reason + " " + message))
	now := metav1.NewTime(w.now())
	return &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: of.Namespace, Name: of.Name[:min(len(of.Name), maxPrefix)] + "." + hex.EncodeToString(sum[:8]),
		},
		InvolvedObject: *of, Type: kind, Reason: reason, Message: message, Count: 1, FirstTimestamp: now, LastTimestamp: now,
		Source: corev1.EventSource{Component: component}, ReportingController: component,
	}
}

// last returns an Event as it was last written, nil if it was not, or was forgotten.
func last(ctx context.Context, api typedcorev1.EventInterface, name string) (*corev1.Event, error) {
	event, err := api.Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the Event %s: %w", name, err)
	}
	return event, nil
}

// put writes an Event, as one more of the last if there is one.
func put(ctx context.Context, api typedcorev1.EventInterface, before, event *corev1.Event) error {
	if before == nil {
		_, err := api.Create(ctx, event, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) {
			return nil // Another replica was faster.
		}
		return err
	}
	patch, err := json.Marshal(map[string]any{"count": before.Count + 1, "lastTimestamp": event.LastTimestamp.UTC().Format(time.RFC3339)})
	if err != nil {
		return err
	}
	_, err = api.Patch(ctx, before.Name, types.MergePatchType, patch, metav1.PatchOptions{})
	return err
}
