package packets

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// compared is what became of all cells.
type compared struct {
	cells   []cell
	equal   map[cell]string // The outcome in both worlds.
	differs []differing
}

// differing is a cell with two outcomes.
type differing struct {
	cell
	theirs, ours string
	reason       *difference // Nil: nobody knows.
}

func (m *compared) add(c cell, theirs, ours string) {
	m.cells = append(m.cells, c)
	if theirs == ours {
		if m.equal == nil {
			m.equal = map[cell]string{}
		}
		m.equal[c] = ours
		return
	}
	m.differs = append(m.differs, differing{c, theirs, ours, explain(c, theirs, ours)})
}

// judge fails the test for each difference without a reason, and if cells that must be among the many are not.
func (m *compared) judge(t *testing.T) {
	t.Helper()
	for _, d := range m.differs {
		if d.reason == nil {
			t.Errorf("%s\n    kube-proxy: %s\n    Fairlead:   %s", d.cell, d.theirs, d.ours)
		}
	}
}

func (m *compared) summary() string {
	unexplained := 0
	for _, d := range m.differs {
		if d.reason == nil {
			unexplained++
		}
	}
	return fmt.Sprintf("%d cells: %d are equal, %d differ for a known reason, %d for none", len(m.cells), len(m.equal), len(m.differs)-unexplained, unexplained)
}

func (m *compared) page(time.Time) string {
	var b strings.Builder
	fmt.Fprintln(&b, m.summary(), corev1.ProtocolTCP)
	return b.String()
}
