package parity

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// ruleset is a table of nftables as kube-proxy writes it. It understands the statements that kube-proxy uses, and refuses
// others, so that none is passed over.
type ruleset struct {
	chains   map[string][][]string        // The rules of each chain, in words.
	elements map[string]map[string]string // Of each set and map; values are empty in sets.
	timeouts map[string]int               // Of each set that has one, in seconds.
	hooks    map[string][]base            // In order of priority.
}

// base is a chain that hangs on a hook.
type base struct {
	chain    string
	priority int
}

// parseRules reads a transaction that fills an empty table. Only what it adds counts; of an element that it adds twice the
// last one, for kube-proxy deletes the other between.
func parseRules(text string) (*ruleset, error) {
	r := &ruleset{
		chains:   map[string][][]string{},
		elements: map[string]map[string]string{},
		timeouts: map[string]int{},
		hooks:    map[string][]base{},
	}
	for line := range strings.Lines(text) {
		words := strings.Fields(withoutComment(line))
		if len(words) < 5 || words[0] != "add" {
			continue
		}
		name, rest := words[4], words[5:]
		switch words[1] {
		case "chain":
			if err := r.addChain(name, rest); err != nil {
				return nil, fmt.Errorf("%q: %w", line, err)
			}
		case "rule":
			r.chains[name] = append(r.chains[name], rest)
		case "set":
			if at := slices.Index(rest, "timeout"); at >= 0 {
				r.timeouts[name], _ = strconv.Atoi(strings.TrimSuffix(rest[at+1], "s"))
			}
		case "element":
			key, value, _ := strings.Cut(strings.Join(rest[1:len(rest)-1], " "), " : ")
			if r.elements[name] == nil {
				r.elements[name] = map[string]string{}
			}
			r.elements[name][key] = value
		}
	}
	for _, chains := range r.hooks {
		slices.SortFunc(chains, func(a, b base) int { return cmp.Compare(a.priority, b.priority) })
	}
	return r, nil
}

// withoutComment cuts the comments out of a command.
func withoutComment(line string) string {
	for {
		before, after, found := strings.Cut(line, ` comment "`)
		if !found {
			return line
		}
		_, after, _ = strings.Cut(after, `"`)
		line = before + after
	}
}

// addChain notes where a chain hangs: { type filter hook input priority 0 ; }.
func (r *ruleset) addChain(name string, words []string) error {
	hook, priority := slices.Index(words, "hook"), slices.Index(words, "priority")
	if hook < 0 || priority < 0 {
		return nil
	}
	n, err := strconv.Atoi(words[priority+1])
	if err != nil {
		return err
	}
	r.hooks[words[hook+1]] = append(r.hooks[words[hook+1]], base{name, n})
	return nil
}
