package frontendpb

import (
	"slices"
	"strings"
	"time"

	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/fairlead/fairlead/translate/model"
)

// The fields of an agent's node.metadata that hold its Report. xDS leaves the metadata of a client to the two sides.
const (
	reportField   = "fairlead"
	notReadyField = "notReady"
	sinceField    = "since"
	problemsField = "problems"
	reasonField   = "reason"
	messageField  = "message"
)

// Report is what an agent says of its node beside its ACKs: an ACK says what the node was programmed with, a Report whether
// packets get there.
type Report struct {
	NotReady string    // Why the node does not forward, and the fix; empty if it does.
	Since    time.Time // When that began, by the node's clock; to the second.

	// Problems are what is wrong with the node though it forwards, at most maxProblems. They have no object: it is the node.
	Problems []model.Problem
}

// What the control plane takes of an agent's problems, which every replica keeps and shows.
const (
	maxProblems = 20
	maxMessage  = 1000 // Bytes.
)

// Equal reports whether two reports say the same.
func (r Report) Equal(o Report) bool {
	return r.NotReady == o.NotReady && r.Since.Equal(o.Since) && slices.Equal(r.Problems, o.Problems)
}

// Metadata returns the report as an agent sends it.
func (r Report) Metadata() *structpb.Struct {
	problems := &structpb.ListValue{}
	for _, p := range r.Problems {
		problems.Values = append(problems.Values, structpb.NewStructValue(&structpb.Struct{Fields: map[string]*structpb.Value{
			reasonField: structpb.NewStringValue(string(p.Reason)), messageField: structpb.NewStringValue(p.Message),
		}}))
	}
	return &structpb.Struct{Fields: map[string]*structpb.Value{reportField: structpb.NewStructValue(&structpb.Struct{
		Fields: map[string]*structpb.Value{
			notReadyField: structpb.NewStringValue(r.NotReady),
			sinceField:    structpb.NewStringValue(r.Since.UTC().Format(time.RFC3339)),
			problemsField: structpb.NewListValue(problems),
		},
	})}}
}

// ReportOf returns the report in what a client says of itself. Without one, or with a part that cannot be read, that part is
// zero: a client of another version is not a node that fails.
func ReportOf(client *corepb.Node) Report {
	fields := client.GetMetadata().GetFields()[reportField].GetStructValue().GetFields()
	since, _ := time.Parse(time.RFC3339, fields[sinceField].GetStringValue()) // The zero time is unknown.
	r := Report{NotReady: fields[notReadyField].GetStringValue(), Since: since}
	for _, v := range fields[problemsField].GetListValue().GetValues() {
		of := v.GetStructValue().GetFields()
		p := model.Problem{Reason: model.Reason(of[reasonField].GetStringValue()), Message: of[messageField].GetStringValue()}
		if len(p.Message) > maxMessage {
			p.Message = strings.ToValidUTF8(p.Message[:maxMessage], "")
		}
		if slices.Contains(model.Reasons, p.Reason) && len(r.Problems) < maxProblems {
			r.Problems = append(r.Problems, p)
		}
	}
	return r
}
