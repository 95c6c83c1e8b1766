package hostcheck

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
)

// ownTable is the name of Fairlead's tables, as package dataplane gives it.
const ownTable = "fairlead"

// ruleset is the chains of the network namespace. The rules of a table are read only if a check asks for them: a node of a large
// cluster has tens of thousands.
type ruleset struct {
	chains []chain
	tables map[string]*table // Those that were read.
}

// chain is a chain as nft describes it. Without a hook it is only reached from others.
type chain struct {
	Family string `json:"family"`
	Table  string `json:"table"`
	Name   string `json:"name"`
	Type   string `json:"type"`
	Hook   string `json:"hook"`
	Prio   int    `json:"prio"`
	Policy string `json:"policy"`
}

// String returns the chain as nft's commands name it.
func (c chain) String() string {
	return fmt.Sprintf("chain %s %s %s", c.Family, c.Table, c.Name)
}

// table is the content of a table: the expressions of each chain's rules, and the elements of each map.
type table struct {
	rules map[string][]any
	maps  map[string]any
}

// nft runs nft and returns its JSON.
func nft(ctx context.Context, answer any, args ...string) error {
	var out, notes bytes.Buffer
	cmd := exec.CommandContext(ctx, "nft", append([]string{"-j"}, args...)...)
	cmd.Stdout, cmd.Stderr = &out, &notes
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("nft %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(notes.String()))
	}
	if err := json.Unmarshal(out.Bytes(), answer); err != nil {
		return fmt.Errorf("nft %s: %w", strings.Join(args, " "), err)
	}
	return nil
}

// readChains reads the chains, without Fairlead's own.
func readChains(ctx context.Context) (*ruleset, error) {
	var answer struct {
		Nftables []struct{ Chain *chain }
	}
	if err := nft(ctx, &answer, "list", "chains"); err != nil {
		return nil, err
	}
	r := &ruleset{tables: map[string]*table{}}
	for _, object := range answer.Nftables {
		if c := object.Chain; c != nil && c.Table != ownTable {
			r.chains = append(r.chains, *c)
		}
	}
	return r, nil
}

// base returns the base chains of other programs at a hook for IPv4 or IPv6 packets.
func (r *ruleset) base(kind string, hooks ...string) []chain {
	var found []chain
	for _, c := range r.chains {
		for _, hook := range hooks {
			if c.Hook == hook && c.Type == kind && (c.Family == "ip" || c.Family == "ip6" || c.Family == "inet") {
				found = append(found, c)
			}
		}
	}
	return found
}

// statements returns the statements that a packet of a base chain may come to, such as drop or masquerade, in the chain itself or
// in those that it leads to.
func (r *ruleset) statements(ctx context.Context, c chain) (map[string]bool, error) {
	t, err := r.read(ctx, c.Family, c.Table)
	if err != nil {
		return nil, err
	}
	w := walk{table: t, found: map[string]bool{}, visited: map[string]bool{}}
	w.chain(c.Name)
	return w.found, nil
}

// read reads the rules of a table, once.
func (r *ruleset) read(ctx context.Context, family, name string) (*table, error) {
	if t := r.tables[family+" "+name]; t != nil {
		return t, nil
	}
	type object struct {
		Chain string
		Name  string
		Expr  []any
		Elem  any
	}
	var answer struct {
		Nftables []struct{ Rule, Map *object }
	}
	if err := nft(ctx, &answer, "list", "table", family, name); err != nil {
		return nil, err
	}
	t := &table{rules: map[string][]any{}, maps: map[string]any{}}
	for _, o := range answer.Nftables {
		switch {
		case o.Rule != nil:
			t.rules[o.Rule.Chain] = append(t.rules[o.Rule.Chain], o.Rule.Expr...)
		case o.Map != nil:
			t.maps[o.Map.Name] = o.Map.Elem
		}
	}
	r.tables[family+" "+name] = t
	return t, nil
}

// walk collects the statements that are reached from a chain.
type walk struct {
	*table
	found, visited map[string]bool // By the statement's name; by the name of the chain, or of the map after an @.
}

// chain walks through a chain's rules.
func (w *walk) chain(name string) {
	if w.visited[name] {
		return
	}
	w.visited[name] = true
	for _, statement := range w.rules[name] {
		w.value(statement)
	}
}

// value walks through a part of a rule or of a map. Statements are the keys of objects; what a key that is none means to nft does
// not matter, for nobody asks for it.
func (w *walk) value(v any) {
	switch v := v.(type) {
	case []any:
		for _, each := range v {
			w.value(each)
		}
	case map[string]any:
		for key, each := range v {
			w.found[key] = true
			if to, ok := each.(map[string]any); ok && (key == "jump" || key == "goto") {
				if target, ok := to["target"].(string); ok {
					w.chain(target)
				}
				continue
			}
			w.value(each)
		}
	case string:
		if name, ok := strings.CutPrefix(v, "@"); ok && !w.visited[v] {
			w.visited[v] = true
			w.value(w.maps[name])
		}
	}
}
