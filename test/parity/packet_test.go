package parity

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// packet is the first packet of a connection on its way.
type packet struct {
	source, destination netip.AddrPort
	protocol            string
	fromNode            bool // The node's own.
	local               func(netip.Addr) bool

	marked, translated bool
	affinity           int // Seconds for which its client is remembered.
}

// fate is how a packet may end.
type fate struct {
	end        string // forward, refuse, drop, or pass where nobody took it.
	endpoint   string
	masquerade bool
	affinity   int
}

// walk is one packet's way through all that may happen to it: wherever chance decides, each of its results is followed.
type walk struct {
	*ruleset
	fates map[fate]bool
	err   error
}

// follow returns how a packet may end.
func (r *ruleset) follow(p packet) (map[fate]bool, error) {
	w := &walk{ruleset: r, fates: map[fate]bool{}}
	first := "prerouting"
	if p.fromNode {
		first = "output"
	}
	w.hook(first, 0, p)
	return w.fates, w.err
}

// hook runs a packet through the chains of a hook from number i on, and then on to the next hook.
func (w *walk) hook(name string, i int, p packet) {
	if i < len(w.hooks[name]) {
		accept := func(p packet) { w.hook(name, i+1, p) }
		w.run(w.chains[w.hooks[name][i].chain], p, accept, accept)
		return
	}
	switch {
	case name != "input" && p.local(p.destination.Addr()): // What a node sends to itself comes in again.
		w.hook("input", 0, p)
	case name == "prerouting":
		w.hook("forward", 0, p)
	case name == "output", name == "forward":
		w.hook("postrouting", 0, p)
	default:
		w.finish(p, false)
	}
}

// finish notes where a packet went that nothing stopped.
func (w *walk) finish(p packet, masquerade bool) {
	f := fate{end: "pass"}
	if p.translated {
		f = fate{end: "forward", endpoint: p.destination.String(), masquerade: masquerade, affinity: p.affinity}
	}
	w.fates[f] = true
}

// run runs a packet through rules. Accept goes on behind the base chain, back goes on behind whoever jumped here.
func (w *walk) run(rules [][]string, p packet, accept, back func(packet)) {
	if len(rules) == 0 {
		back(p)
		return
	}
	w.statements(rules[0], p, accept, back, func(p packet) { w.run(rules[1:], p, accept, back) })
}

// statements runs a packet through what is left of one rule; next goes on with the next rule.
func (w *walk) statements(words []string, p packet, accept, back, next func(packet)) {
	is := func(prefix string) bool {
		want := strings.Fields(prefix)
		return len(words) >= len(want) && slices.Equal(words[:len(want)], want)
	}
	switch {
	case w.err != nil:
	case len(words) == 0:
		next(p)
	case is("ct state new"): // All packets here are.
		w.statements(words[3:], p, accept, back, next)
	case is("ct status dnat"):
		w.when(p.translated, words[3:], p, accept, back, next)
	case is("mark and"): // mark and 0x4000 != 0
		w.when(p.marked, words[5:], p, accept, back, next)
	case is("mark set mark"): // mark set mark or 0x4000; xor takes it away.
		p.marked = words[3] == "or"
		w.statements(words[5:], p, accept, back, next)
	case is("update"): // update @set { ip saddr }
		p.affinity = w.timeouts[strings.TrimPrefix(words[1], "@")]
		w.statements(words[6:], p, accept, back, next)
	case is("numgen random mod"): // numgen random mod 2 vmap { 0 : goto a, 1 : goto b }
		for _, verdict := range values(words[5:]) {
			w.statements(verdict, p, accept, back, next)
		}
	case is("dnat to"):
		w.translate(words[2], p, accept)
	case is("dnat"): // dnat ip addr . port to numgen random mod 2 map { 0 : 10.0.0.1 . 80 , … }
		for _, v := range values(words[11:]) {
			w.translate(net.JoinHostPort(v[0], v[2]), p, accept)
		}
	case is("masquerade"):
		w.finish(p, true) // In the last chain of all.
	case is("drop"):
		w.fates[fate{end: "drop"}] = true
	case is("reject"):
		w.fates[fate{end: "refuse"}] = true
	case is("goto"):
		w.run(w.chains[words[1]], p, accept, back)
	case is("jump"):
		w.run(w.chains[words[1]], p, accept, next)
	default:
		w.match(words, p, accept, back, next)
	}
}

// when goes on with the rule if a condition holds, else with the next rule.
func (w *walk) when(holds bool, words []string, p packet, accept, back, next func(packet)) {
	if !holds {
		next(p)
		return
	}
	w.statements(words, p, accept, back, next)
}

// translate changes a packet's destination, with which its chain ends.
func (w *walk) translate(to string, p packet, accept func(packet)) {
	destination, err := netip.ParseAddrPort(to)
	if err != nil {
		w.fates[fate{end: "nowhere, for nft refuses the rules"}] = true
		return
	}
	p.destination, p.translated = destination, true
	accept(p)
}

// match compares fields of a packet, joined by dots, with a value, a set or a map of verdicts.
func (w *walk) match(words []string, p packet, accept, back, next func(packet)) {
	var key []string
	for {
		value, n := field(words, p)
		if n == 0 {
			w.err = fmt.Errorf("a rule that the model of nftables does not know: %s", strings.Join(words, " "))
			return
		}
		key, words = append(key, value), words[n:]
		if words[0] != "." {
			break
		}
		words = words[1:]
	}
	found := strings.Join(key, " . ")
	if words[0] == "vmap" {
		verdict, ok := w.elements[words[1][1:]][found]
		if !ok {
			next(p)
			return
		}
		w.statements(strings.Fields(verdict), p, accept, back, next)
		return
	}
	want := true
	if words[0] == "!=" {
		want, words = false, words[1:]
	}
	holds, n := w.holds(found, words)
	w.when(holds == want, words[n:], p, accept, back, next)
}

// holds reports whether a value is the one that words begin with, or in its set, and how many words that took.
func (w *walk) holds(value string, words []string) (bool, int) {
	if name, ok := strings.CutPrefix(words[0], "@"); ok {
		_, in := w.elements[name][value]
		return in, 1
	}
	if words[0] != "{" {
		return equal(value, words[0]), 1
	}
	end := slices.Index(words, "}")
	return slices.ContainsFunc(words[1:end], func(e string) bool { return equal(value, e) }), end + 1
}

// equal reports whether a value is another one, or an address in a prefix.
func equal(value, want string) bool {
	if value == want {
		return true
	}
	prefix, err := netip.ParsePrefix(want)
	address, not := netip.ParseAddr(value)
	return err == nil && not == nil && prefix.Contains(address)
}

// field returns the value of the field that words name, and how many words that took; 0 for an unknown one.
func field(words []string, p packet) (string, int) {
	two := strings.Join(words[:min(2, len(words))], " ")
	switch strings.Replace(two, "ip6", "ip", 1) {
	case "ip saddr":
		return p.source.Addr().String(), 2
	case "ip daddr":
		return p.destination.Addr().String(), 2
	case "meta l4proto":
		return p.protocol, 2
	case "th dport":
		return strconv.Itoa(int(p.destination.Port())), 2
	case "fib saddr":
		return kindOf(p.fromNode), 3 // … type
	case "fib daddr":
		return kindOf(p.local(p.destination.Addr())), 3
	}
	return "", 0
}

func kindOf(local bool) string {
	if local {
		return "local"
	}
	return "unicast"
}

// values returns the values of { 0 : a b , 1 : c d }, in words.
func values(words []string) [][]string {
	var all [][]string
	inside := strings.Join(words[1:len(words)-1], " ")
	for element := range strings.SplitSeq(inside, ",") {
		_, value, _ := strings.Cut(element, ": ")
		all = append(all, strings.Fields(value))
	}
	return all
}

// must returns a value of which the program itself knows that it can be read.
func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}
