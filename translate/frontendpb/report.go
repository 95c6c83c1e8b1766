package frontendpb

import (
	"time"

	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/types/known/structpb"
)

// The fields of an agent's node.metadata that hold its Report. xDS leaves the metadata of a client to the two sides.
const (
	reportField   = "fairlead"
	notReadyField = "notReady"
	sinceField    = "since"
)

// Report is what an agent says of its node beside its ACKs: an ACK says what the node was programmed with, a Report whether
// packets get there.
type Report struct {
	NotReady string    // Why the node does not forward, and the fix; empty if it does.
	Since    time.Time // When that began, by the node's clock; to the second.
}

// Metadata returns the report as an agent sends it.
func (r Report) Metadata() *structpb.Struct {
	return &structpb.Struct{Fields: map[string]*structpb.Value{reportField: structpb.NewStructValue(&structpb.Struct{
		Fields: map[string]*structpb.Value{
			notReadyField: structpb.NewStringValue(r.NotReady),
			sinceField:    structpb.NewStringValue(r.Since.UTC().Format(time.RFC3339)),
		},
	})}}
}

// ReportOf returns the report in what a client says of itself. Without one, or with a part that cannot be read, that part is
// zero: a client of another version is not a node that fails.
func ReportOf(client *corepb.Node) Report {
	fields := client.GetMetadata().GetFields()[reportField].GetStructValue().GetFields()
	since, _ := time.Parse(time.RFC3339, fields[sinceField].GetStringValue()) // The zero time is unknown.
	return Report{NotReady: fields[notReadyField].GetStringValue(), Since: since}
}
