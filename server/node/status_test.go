package node

import (
	"encoding/json"
	"regexp"
	"testing"

	"github.com/fairlead/fairlead/cache"
	"github.com/fairlead/fairlead/server/node/envoyns"
	"github.com/fairlead/fairlead/server/node/upstream"
	"github.com/fairlead/fairlead/translate/model"
)

// The keys of the status have one style, that of Kubernetes' objects, whichever package they come from.
func TestStatusKeys(t *testing.T) {
	text, err := json.Marshal(Status{
		Generations: []envoyns.ID{1}, Upstream: upstream.Status{Types: []upstream.TypeStatus{{}}},
		Envoys: []cache.StreamStatus{{}}, Problems: []model.Problem{{}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if bad := regexp.MustCompile(`"[^"]*[A-Z]{2}[^"]*":|"[A-Z_][^"]*":`).FindAllString(string(text), -1); bad != nil {
		t.Errorf("keys %q in %s", bad, text)
	}
}
