package frontendpb

import (
	"slices"
	"strings"
	"testing"
	"time"

	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/fairlead/fairlead/translate/model"
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
		"problems": {
			Report{NotReady: "", Since: want.Since, Problems: []model.Problem{{Object: "Service default/web", Reason: model.HostObstacle, Message: "m"}, {Reason: "Unheard"}}}.Metadata(),
			Report{Since: want.Since, Problems: []model.Problem{{Reason: model.HostObstacle, Message: "m"}}},
		},
		"long": {Report{Problems: problems(1, maxMessage+1)}.Metadata(), Report{Problems: problems(1, maxMessage)}},
		"many": {Report{Problems: problems(maxProblems+1, 1)}.Metadata(), Report{Problems: problems(maxProblems, 1)}},
	} {
		if got := ReportOf(&corepb.Node{Metadata: test.metadata}); !got.Equal(test.want) {
			t.Errorf("%s: got %+v, want %+v", name, got, test.want)
		}
	}
}

// problems returns a number of problems with messages of a length.
func problems(n, length int) []model.Problem {
	return slices.Repeat([]model.Problem{{Reason: model.HostObstacle, Message: strings.Repeat("m", length)}}, n)
}
