package cache

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"

	clusterpb "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	gcpresource "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// Resource is one xDS resource, already marshalled. It is immutable: all streams that send it share Body.
type Resource struct {
	TypeURL string // Such as type.googleapis.com/envoy.config.cluster.v3.Cluster.
	Name    string
	Version string // A hash of the content: equal on all replicas. That of an assignment, once sent, covers its clusters too.
	Body    *anypb.Any

	assignment string // Of a Cluster of type EDS: the name of the assignment that it refers to.
}

// NewResource marshals and validates m. The error names the resource.
//
// The version is the first 12 bytes of a SHA-256 over the deterministic encoding. A client compares versions only
// within one name, so 96 bits never collide by accident, and a hash with cryptographic strength does not let the
// author of a Service craft endpoints whose version equals that of others. Encodings may differ between two builds of Fairlead;
// then a client that moves from one to the other gets equal content once more, which does no harm.
func NewResource(typeURL, name string, m proto.Message) (Resource, error) {
	if name == "" {
		return Resource{}, fmt.Errorf("resource of type %s has no name", typeURL)
	}
	if own := anyPrefix + string(m.ProtoReflect().Descriptor().FullName()); own != typeURL {
		return Resource{}, fmt.Errorf("resource %q: message is a %s, not a %s", name, own, typeURL)
	}
	// Envoy rejects what breaks the constraints in its API's definitions. Found here, a bad object costs only itself;
	// found by Envoy, it costs the acknowledgement of a whole response.
	if v, ok := m.(interface{ ValidateAll() error }); ok {
		if err := v.ValidateAll(); err != nil {
			return Resource{}, fmt.Errorf("resource %q of type %s: %w", name, typeURL, err)
		}
	}
	value, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return Resource{}, fmt.Errorf("resource %q of type %s: %w", name, typeURL, err)
	}
	sum := sha256.Sum256(value)
	return Resource{
		TypeURL: typeURL, Name: name, Version: versionOf(sum[:]),
		Body:       &anypb.Any{TypeUrl: typeURL, Value: value},
		assignment: assignmentOf(m),
	}, nil
}

// ReceivedResource is a resource as another control plane of Fairlead sent it, version included. The agent serves such
// resources to its Envoys: versions that pass through unaltered let Envoy resume with any agent or replica. A Cluster
// that cannot be read is an error.
func ReceivedResource(r *discoverypb.Resource) (Resource, error) {
	switch {
	case r.GetName() == "":
		return Resource{}, errors.New("received resource has no name")
	case r.GetVersion() == "":
		return Resource{}, fmt.Errorf("received resource %q has no version", r.GetName())
	case r.GetResource() == nil:
		return Resource{}, fmt.Errorf("received resource %q has no content", r.GetName())
	}
	received := Resource{TypeURL: r.GetResource().GetTypeUrl(), Name: r.GetName(), Version: r.GetVersion(), Body: r.GetResource()}
	if received.TypeURL == gcpresource.ClusterType {
		var c clusterpb.Cluster
		if err := r.GetResource().UnmarshalTo(&c); err != nil {
			return Resource{}, fmt.Errorf("received cluster %q: %w", r.GetName(), err)
		}
		received.assignment = assignmentOf(&c)
	}
	return received, nil
}

func (r *Resource) key() resourceName { return resourceName{r.TypeURL, r.Name} }

// assignmentOf returns the name of the assignment that m, a Cluster of type EDS, refers to: its service_name or, as
// in Envoy, its own name.
func assignmentOf(m proto.Message) string {
	c, ok := m.(*clusterpb.Cluster)
	if !ok || c.GetType() != clusterpb.Cluster_EDS {
		return ""
	}
	if s := c.GetEdsClusterConfig().GetServiceName(); s != "" {
		return s
	}
	return c.GetName()
}

// versionOf renders a hash as a version: short, since every client keeps one for each resource.
func versionOf(sum []byte) string { return base64.RawURLEncoding.EncodeToString(sum[:12]) }
