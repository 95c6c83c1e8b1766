package realnode

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// result is what became of one spec.
type result struct {
	name    string // Without [sig-network].
	place   string // File and line.
	state   string // passed, failed, skipped, or another of ginkgo's.
	took    time.Duration
	message string // The first line of why it failed or was skipped.
}

type results []result

// parseResults reads ginkgo's report. Specs that were not asked for are left out.
func parseResults(report []byte) (results, error) {
	var suites []struct {
		SpecReports []struct {
			ContainerHierarchyTexts []string
			LeafNodeText            string
			LeafNodeType            string
			LeafNodeLocation        struct {
				FileName   string
				LineNumber int
			}
			State   string
			RunTime time.Duration
			Failure struct{ Message string }
		}
	}
	if err := json.Unmarshal(report, &suites); err != nil {
		return nil, fmt.Errorf("ginkgo's report: %w", err)
	}
	var all results
	for _, suite := range suites {
		for _, s := range suite.SpecReports {
			if s.LeafNodeType != "It" || s.State == "skipped" && s.Failure.Message == "" {
				continue
			}
			line, _, _ := strings.Cut(strings.TrimSpace(s.Failure.Message), "\n")
			name := strings.Join(append(s.ContainerHierarchyTexts, s.LeafNodeText), " ")
			all = append(all, result{
				name:    strings.TrimSpace(strings.Replace(name, "[sig-network]", "", 1)),
				place:   fmt.Sprintf("%s:%d", filepath.Base(s.LeafNodeLocation.FileName), s.LeafNodeLocation.LineNumber),
				state:   s.State,
				took:    s.RunTime,
				message: line,
			})
		}
	}
	slices.SortFunc(all, func(a, b result) int { return cmp.Compare(a.name, b.name) })
	return all, nil
}

func (r results) summary() string {
	counts := map[string]int{}
	for _, s := range r {
		counts[s.state]++
	}
	parts := []string{fmt.Sprintf("%d specs", len(r))}
	for _, state := range slices.Sorted(maps.Keys(counts)) {
		parts = append(parts, fmt.Sprintf("%d %s", counts[state], state))
	}
	return strings.Join(parts, ", ")
}

// table is for people; what did not pass comes first.
func (r results) table(proxy string) string {
	sorted := slices.Clone(r)
	slices.SortStableFunc(sorted, func(a, b result) int {
		return cmp.Compare(btoi(a.state == "passed"), btoi(b.state == "passed"))
	})
	var b strings.Builder
	fmt.Fprintf(&b, "# Kubernetes' own tests of sig-network, %s, %s\n\n%s\n\n| spec | at | result | s | why |\n|---|---|---|---|---|\n",
		proxy, time.Now().Format(time.DateOnly), r.summary())
	for _, s := range sorted {
		fmt.Fprintf(&b, "| %s | %s | %s | %.0f | %s |\n", cell(s.name), s.place, s.state, s.took.Seconds(), cell(s.message))
	}
	return b.String()
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// cell keeps text from ending a table's cell.
func cell(s string) string {
	const most = 300
	if len(s) > most {
		s = s[:most] + "…"
	}
	return strings.NewReplacer("|", "\\|", "\n", " ", "<", "&lt;").Replace(s)
}

// expectationsFile has, for each spec, the last results and why Fairlead may fail it.
const expectationsFile = "CONFORMANCE.md"

const expectationsHead = "# Kubernetes' own tests of sig-network\n\n" +
	"What Fairlead, in kube-proxy's place, and kube-proxy 1.37 in nftables mode make of the specs that can run on three nodes on one machine.\n" +
	"`make conformance` fails on a spec that kube-proxy passes and Fairlead fails, unless a reason stands here. `CONFORMANCE_FLAGS=-update` writes\n" +
	"the results into this table, `CONFORMANCE_FLAGS=-proxy=kube-proxy` tests kube-proxy instead. What cannot run is in conformance_test.go.\n\n"

const expectationsColumns = "| spec | Fairlead | kube-proxy | reason |\n|---|---|---|---|\n"

// expectation is one line of the file.
type expectation struct{ fairlead, kubeProxy, reason string }

// expectations are by the name of the spec as a cell has it.
type expectations struct {
	dates map[string]string // Of the last runs, by proxy.
	specs map[string]expectation
}

func readExpectations() (*expectations, error) {
	e := &expectations{dates: map[string]string{}, specs: map[string]expectation{}}
	text, err := os.ReadFile(expectationsFile)
	if os.IsNotExist(err) {
		return e, nil
	}
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if proxy, date, ok := strings.Cut(line, ", last run: "); ok {
			e.dates[proxy] = date
			continue
		}
		cells := strings.Split(strings.Trim(line, "|"), " | ")
		if !strings.HasPrefix(line, "| ") || strings.HasPrefix(line, "| spec ") {
			continue
		}
		if len(cells) != 4 {
			return nil, fmt.Errorf("%s: want four cells: %s", expectationsFile, line)
		}
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		e.specs[cells[0]] = expectation{cells[1], cells[2], cells[3]}
	}
	return e, nil
}

// record puts the results of a run into the proxy's column.
func (e *expectations) record(proxy string, r results) {
	e.dates[proxy] = time.Now().Format(time.DateOnly) + ", " + r.summary()
	for _, s := range r {
		line := e.specs[cell(s.name)]
		if proxy == "fairlead" {
			line.fairlead = s.state
		} else {
			line.kubeProxy = s.state
		}
		e.specs[cell(s.name)] = line
	}
}

func (e *expectations) write() error {
	var b strings.Builder
	b.WriteString(expectationsHead)
	for _, proxy := range slices.Sorted(maps.Keys(e.dates)) {
		fmt.Fprintf(&b, "%s, last run: %s\n\n", proxy, e.dates[proxy])
	}
	b.WriteString(expectationsColumns)
	for _, name := range slices.Sorted(maps.Keys(e.specs)) {
		s := e.specs[name]
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", name, s.fairlead, s.kubeProxy, s.reason)
	}
	return os.WriteFile(expectationsFile, []byte(b.String()), 0o644)
}

// compare returns what is worse than it has to be.
func (e *expectations) compare(r results) []string {
	var problems []string
	for _, s := range r {
		known := e.specs[cell(s.name)]
		if s.state != "passed" && s.state != "skipped" && known.kubeProxy == "passed" && known.reason == "" {
			problems = append(problems, fmt.Sprintf("kube-proxy passes and Fairlead does not: %s (%s): %s", s.name, s.place, s.message))
		}
	}
	return problems
}

func TestExpectations(t *testing.T) {
	e := &expectations{specs: map[string]expectation{
		"a": {"passed", "passed", ""}, "b": {"failed", "passed", "not yet"}, "c": {"failed", "failed", ""},
	}}
	got := e.compare(results{{name: "a", state: "failed"}, {name: "b", state: "failed"}, {name: "c", state: "failed"}, {name: "d", state: "failed"}})
	if len(got) != 1 || !strings.Contains(got[0], ": a (") {
		t.Errorf("problems are %q, want one, of a", got)
	}
}
