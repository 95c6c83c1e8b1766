package frontendpb

import (
	"testing"
	"time"

	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/types/known/structpb"
)

// What an agent sends is what a control plane reads; what another client sends is nothing.
func TestReport(t *testing.T) {
	want := Report{NotReady: "no Envoy is ready", Since: time.Date(2026, 11, 26, 7, 30, 0, 0, time.UTC)}
	for name, test := range map[string]struct {
		metadata *structpb.Struct
		want     Report
	}{
		"sent":      {want.Metadata(), want},
		"no report": {nil, Report{}},
		"not ours":  {&structpb.Struct{Fields: map[string]*structpb.Value{reportField: structpb.NewNumberValue(1)}}, Report{}},
	} {
		if got := ReportOf(&corepb.Node{Metadata: test.metadata}); got != test.want {
			t.Errorf("%s: got %+v, want %+v", name, got, test.want)
		}
	}
}
