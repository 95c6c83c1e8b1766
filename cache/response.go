package cache

import (
	"context"
	"crypto/sha256"
	"slices"
	"strings"

	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	gcpcache "github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"google.golang.org/protobuf/types/known/anypb"
)

// response is what one response says, and which publishes it covers. It is immutable but for message, which belongs
// to the goroutine of the stream.
type response struct {
	resources []item
	removed   []string
	since     uint64 // The first publish that the client may lack as long as it has not acknowledged this.
	upTo      uint64 // The publish that the client has reached with this.

	// message is what go-control-plane's server sends, nil until it asks for it just before it does. The server also
	// writes the nonce there.
	message interface{ GetNonce() string }
}

// item is a resource in a response.
type item struct {
	*entry
	traced bool // With the trace of its change.
}

func (i item) message() *discoverypb.Resource {
	if i.traced {
		return i.entry.traced
	}
	return i.plain
}

// nonce returns the response's nonce, "" before it is sent.
func (r *response) nonce() string {
	if r.message == nil {
		return ""
	}
	return r.message.GetNonce()
}

// mentions reports whether the response adds, changes or removes a name.
func (r *response) mentions(name string) bool {
	return slices.ContainsFunc(r.resources, func(i item) bool { return i.plain.GetName() == name }) ||
		slices.Contains(r.removed, name)
}

// each calls do with every name in the response.
func (r *response) each(do func(name string)) {
	for _, i := range r.resources {
		do(i.plain.GetName())
	}
	for _, name := range r.removed {
		do(name)
	}
}

// sorted returns the resources in order of name, so that equal responses are equal on the wire and have equal versions.
// It is called without the lock.
func (r *response) sorted() []*discoverypb.Resource {
	sorted := make([]*discoverypb.Resource, len(r.resources))
	for i, in := range r.resources {
		sorted[i] = in.message()
	}
	slices.SortFunc(sorted, func(a, b *discoverypb.Resource) int { return strings.Compare(a.GetName(), b.GetName()) })
	return sorted
}

// deltaResponse is a response as go-control-plane's delta server takes it.
type deltaResponse struct {
	*response
	request *discoverypb.DeltaDiscoveryRequest // Has no more than the type, and is shared by a stream's responses.
	system  string
}

var _ gcpcache.DeltaResponse = (*deltaResponse)(nil)

// GetDeltaDiscoveryResponse returns the message to send; always the same.
func (r *deltaResponse) GetDeltaDiscoveryResponse() (*discoverypb.DeltaDiscoveryResponse, error) {
	if m, ok := r.message.(*discoverypb.DeltaDiscoveryResponse); ok {
		return m, nil
	}
	m := &discoverypb.DeltaDiscoveryResponse{
		TypeUrl:           r.request.GetTypeUrl(),
		SystemVersionInfo: r.system,
		Resources:         r.sorted(),
		RemovedResources:  slices.Sorted(slices.Values(r.removed)),
	}
	r.message = m
	return m, nil
}

// GetDeltaRequest returns the part of the request that the server reads: its type. The request itself may hold the names
// of everything, and is not kept.
func (r *deltaResponse) GetDeltaRequest() *discoverypb.DeltaDiscoveryRequest { return r.request }

// GetSystemVersion returns the sequence number of the publish, for debugging.
func (r *deltaResponse) GetSystemVersion() (string, error) { return r.system, nil }

// GetResponseVersion is GetSystemVersion.
func (r *deltaResponse) GetResponseVersion() string { return r.system }

// GetNextVersionMap returns an empty map: what the client has is in the subscription, in much less space than a map of
// all names. It is a new one each time, since the server writes to it.
func (r *deltaResponse) GetNextVersionMap() map[string]string { return map[string]string{} }

// GetReturnedResources is GetNextVersionMap.
func (r *deltaResponse) GetReturnedResources() map[string]string { return r.GetNextVersionMap() }

// GetContext returns no context of its own.
func (r *deltaResponse) GetContext() context.Context { return context.Background() }

// sotwResponse is a response as go-control-plane's SotW server takes it.
type sotwResponse struct {
	*response
	request *discoverypb.DiscoveryRequest // Like deltaResponse's.
}

var _ gcpcache.Response = (*sotwResponse)(nil)

// GetDiscoveryResponse returns the message to send; always the same.
func (r *sotwResponse) GetDiscoveryResponse() (*discoverypb.DiscoveryResponse, error) {
	if m, ok := r.message.(*discoverypb.DiscoveryResponse); ok {
		return m, nil
	}
	hash := sha256.New()
	bodies := make([]*anypb.Any, len(r.resources))
	for i, m := range r.sorted() {
		bodies[i] = m.GetResource()
		hash.Write([]byte(m.GetName() + "\x00" + m.GetVersion() + "\x00"))
	}
	m := &discoverypb.DiscoveryResponse{
		TypeUrl:     r.request.GetTypeUrl(),
		VersionInfo: versionOf(hash.Sum(nil)), // Equal content has equal versions, on all replicas.
		Resources:   bodies,
	}
	r.message = m
	return m, nil
}

// GetRequest returns the part of the request that the server reads: its type.
func (r *sotwResponse) GetRequest() *discoverypb.DiscoveryRequest { return r.request }

// GetVersion returns the version of the response's content.
func (r *sotwResponse) GetVersion() (string, error) {
	m, err := r.GetDiscoveryResponse()
	return m.GetVersionInfo(), err
}

// GetResponseVersion is GetVersion.
func (r *sotwResponse) GetResponseVersion() string {
	v, _ := r.GetVersion() // Never fails.
	return v
}

// GetReturnedResources returns nothing: what the client has is in the subscription.
func (r *sotwResponse) GetReturnedResources() map[string]string { return nil }

// GetContext returns no context of its own.
func (r *sotwResponse) GetContext() context.Context { return context.Background() }

// rejected returns the names in the response that a NACK is about. Envoy applies every good resource of a CDS or LDS
// response and names the bad ones in the detail. Of other types it may have stopped at the first bad one, and other
// clients' details have no fixed form: then it may be any.
func (r *response) rejected(typeURL, detail string) []string {
	var all, named []string
	r.each(func(name string) {
		all = append(all, name)
		if strings.Contains(detail, name) {
			named = append(named, name)
		}
	})
	switch {
	case len(all) == 0:
		return []string{""} // Nothing to reject was sent; the NACK still has to count until a response is acknowledged.
	case fullState(typeURL) && len(named) > 0:
		return named
	default:
		return all
	}
}
