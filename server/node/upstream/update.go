package upstream

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/types/known/anypb"
)

// Resource is one xDS resource as the control plane sent it. It is immutable.
type Resource struct {
	Name    string
	Version string     // Never empty.
	Any     *anypb.Any // Never nil; its type URL is the type of the subscription.
	// Traceparent is the W3C trace context of the change that brought this version; empty when there is none, and
	// for a resource from the state file.
	Traceparent string
}

// Proto returns the resource in xDS' form, without the trace context.
func (r Resource) Proto() *discoverypb.Resource {
	return &discoverypb.Resource{Name: r.Name, Version: r.Version, Resource: r.Any}
}

// Update is the change by one or more responses of one type. It is immutable. It names a resource at most once.
type Update struct {
	Type    string
	Changed []Resource // New or with a new version, sorted by name.
	Removed []string   // Sorted.

	ticket *ticket // The update's identity, for Ack and Nack.
}

// ticket records the responses that an update consists of, and the stream on which they arrived.
type ticket struct {
	stream  *stream
	replies []reply // In the order of the responses.
}

// reply is the answer to one response. The session rejects a response with a malformed resource whatever the agent answers for
// the rest.
type reply struct {
	nonce string
	err   error
}

// answer is the agent's answer to an update; err is nil for an ACK.
type answer struct {
	update Update
	err    error
}

// newUpdate reads a response. It keeps the errors of malformed resources for the reply, and uses the sound ones: one bad
// resource does not block the others.
func newUpdate(s *stream, response *discoverypb.DeltaDiscoveryResponse) Update {
	resources := map[string]Resource{}
	var bad []error
	for _, r := range response.GetResources() {
		if err := sound(response.GetTypeUrl(), r); err != nil {
			bad = append(bad, err)
			continue
		}
		resources[r.GetName()] = Resource{
			Name: r.GetName(), Version: r.GetVersion(), Any: r.GetResource(), Traceparent: traceparent(r),
		}
	}
	removed := map[string]bool{}
	for _, name := range response.GetRemovedResources() {
		if _, ok := resources[name]; !ok {
			removed[name] = true
		}
	}
	return Update{
		Type:    response.GetTypeUrl(),
		Changed: sortedResources(resources),
		Removed: slices.Sorted(maps.Keys(removed)),
		ticket:  &ticket{stream: s, replies: []reply{{nonce: response.GetNonce(), err: errors.Join(bad...)}}},
	}
}

func sound(typeURL string, r *discoverypb.Resource) error {
	switch {
	case r.GetName() == "":
		return errors.New("resource without a name")
	case r.GetVersion() == "":
		return fmt.Errorf("resource %q has no version", r.GetName())
	case r.GetResource() == nil:
		return fmt.Errorf("resource %q has no body", r.GetName())
	case r.GetResource().GetTypeUrl() != typeURL:
		return fmt.Errorf("resource %q has type %q in a response of type %q",
			r.GetName(), r.GetResource().GetTypeUrl(), typeURL)
	}
	return nil
}

// then returns the update that has the effect of u followed by later. Both are of one type and one stream.
func (u Update) then(later Update) Update {
	resources := map[string]Resource{}
	removed := map[string]bool{}
	for _, step := range []Update{u, later} {
		for _, name := range step.Removed {
			delete(resources, name)
			removed[name] = true
		}
		for _, r := range step.Changed {
			delete(removed, r.Name)
			resources[r.Name] = r
		}
	}
	return Update{
		Type:    u.Type,
		Changed: sortedResources(resources),
		Removed: slices.Sorted(maps.Keys(removed)),
		ticket:  &ticket{stream: u.ticket.stream, replies: slices.Concat(u.ticket.replies, later.ticket.replies)},
	}
}

func sortedResources(resources map[string]Resource) []Resource {
	sorted := make([]Resource, 0, len(resources))
	for _, name := range slices.Sorted(maps.Keys(resources)) {
		sorted = append(sorted, resources[name])
	}
	return sorted
}

// traceparent reads the trace context from a resource's metadata, which xDS has for such data.
func traceparent(r *discoverypb.Resource) string {
	return r.GetMetadata().GetFilterMetadata()["fairlead"].GetFields()["traceparent"].GetStringValue()
}
