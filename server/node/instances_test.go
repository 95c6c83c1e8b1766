package node

import (
	"testing"

	"github.com/fairlead/fairlead/server/node/envoyns"
)

// The newest Envoy that lives takes over from the current one, also when a still newer one has died; an older one never does
// while the current one lives.
func TestCandidate(t *testing.T) {
	for _, tc := range []struct {
		name          string
		live          []envoyns.ID
		current, last envoyns.ID
		want          envoyns.ID
	}{
		{"none", nil, 0, 0, 0},
		{"the first", []envoyns.ID{1}, 0, 1, 1},
		{"only the current one", []envoyns.ID{1}, 1, 1, 0},
		{"a new one", []envoyns.ID{1, 2}, 1, 2, 2},
		{"one that drains", []envoyns.ID{1, 2}, 2, 2, 0},
		{"the newest has died, another waits", []envoyns.ID{1, 2}, 1, 3, 2},
		{"the newest has died, an old one drains", []envoyns.ID{1, 2}, 2, 3, 0},
		{"the current one has died, an old one drains", []envoyns.ID{1}, 0, 2, 1},
		{"numbers begin anew", []envoyns.ID{1, 14, 15}, 15, 1, 1},
		{"numbers have begun anew, the newest has died", []envoyns.ID{14, 15}, 14, 1, 15},
	} {
		g := instances{live: tc.live, current: tc.current, last: tc.last}
		if got := g.candidate(); got != tc.want {
			t.Errorf("%s: %d, want %d", tc.name, got, tc.want)
		}
	}
}
