package parity

import (
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func TestRoutes(t *testing.T) {
	first := *seed
	if first == 0 {
		first = rand.Uint64N(1 << 40)
	}
	t.Logf("-seed %d", first)
	k, total := newKubeProxy(t), 0
	for i := first; total < *routes; i++ {
		c := newCluster(i)
		differs, n, err := k.compare(t.Context(), c, nil)
		if err != nil {
			t.Fatalf("-seed %d: %v", i, err)
		}
		if total += n; len(differs) > 0 {
			t.Errorf("-seed %d -routes 1 differs in %d answers, such as %s", i, len(differs), differs[0])
			small, smallest := k.smallest(t, c, nil)
			t.Fatalf("the smallest manifests that differ on node %s:\n%s\n%s", small.Node, small.manifests(), strings.Join(smallest, "\n"))
		}
	}
	t.Logf("%d routes compared, none differs but for what translate/README.md says", total)
}

// A rule that explains nothing would hide something one day.
func TestEachDifferenceIsNeeded(t *testing.T) {
	k := newKubeProxy(t)
	for i := range differences {
		d := &differences[i]
		t.Run(d.row, func(t *testing.T) {
			for seed := uint64(1); seed < 2000; seed++ {
				c := newCluster(seed)
				if d.prepare != nil && !d.changes(c) {
					continue
				}
				differs, _, err := k.compare(t.Context(), c, d)
				if err != nil {
					t.Fatal(err)
				}
				if len(differs) > 0 {
					return
				}
			}
			t.Error("without this rule nothing differs")
		})
	}
}

// changes reports whether the rule changes what kube-proxy sees, after those before it.
func (d *difference) changes(c *cluster) bool {
	seen := c.copied()
	fillIn(seen)
	for i := range differences {
		before := seen.copied()
		if differences[i].prepare != nil {
			differences[i].prepare(seen)
		}
		if &differences[i] == d {
			return !reflect.DeepEqual(before, seen)
		}
	}
	return false
}

// The rules that are followed are such as the kernel takes, so that no rule of a difference hides that it would not.
func TestRulesAreAccepted(t *testing.T) {
	nft, err := exec.LookPath("nft")
	if err != nil {
		t.Fatal(err)
	}
	k := newKubeProxy(t)
	for seed := uint64(1); seed <= 3; seed++ {
		seen, _ := newCluster(seed).prepared(nil)
		for _, family := range families {
			if _, err := k.rules(t.Context(), seen, family); err != nil {
				t.Fatal(err)
			}
			if said, err := exec.Command(nft, "--check", "--file", k.transaction).CombinedOutput(); err != nil {
				t.Errorf("-seed %d: %v: %s", seed, err, said)
			}
		}
	}
}

// What is printed of a difference is what makes it: here the two Services that want one address.
func TestSmallest(t *testing.T) {
	at := slices.IndexFunc(differences, func(d difference) bool { return d.splits })
	k := newKubeProxy(t)
	for seed := uint64(1); ; seed++ {
		c := newCluster(seed)
		if differs, _, err := k.compare(t.Context(), c, &differences[at]); err != nil || len(differs) == 0 {
			continue
		}
		small, differs := k.smallest(t, c, &differences[at])
		if len(small.Services) > 2 || len(small.Slices) > 2 || len(small.Nodes) > 0 || len(differs) == 0 {
			t.Errorf("differs in %q, and is not small:\n%s", differs, small.manifests())
		}
		return
	}
}

// Each difference has a row in translate/README.md, and each row a rule here or a proof elsewhere.
func TestDifferencesAreWrittenDown(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "translate", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, table, found := strings.Cut(string(text), "| what | kube-proxy | Fairlead | why |\n|---|---|---|---|\n")
	if !found {
		t.Fatal("translate/README.md has no table of differences")
	}
	var known []string
	for _, d := range differences {
		known = append(known, d.row)
	}
	for row := range elsewhere {
		known = append(known, row)
	}
	for line := range strings.Lines(table) {
		row, ok := strings.CutPrefix(line, "| ")
		if !ok {
			break
		}
		n := len(known)
		if known = slices.DeleteFunc(known, func(k string) bool { return strings.HasPrefix(row, k) }); len(known) != n-1 {
			t.Errorf("translate/README.md has a difference that nothing here is about, or two things: %s", line)
		}
	}
	if len(known) > 0 {
		t.Errorf("translate/README.md does not name these differences: %q", known)
	}
}
