package hostcheck

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strings"
)

// features are what Fairlead needs of nftables: a rule that needs it, in a chain of the type and hook, and the kernel's option.
var features = []struct{ chain, rule, option string }{
	{"type filter hook prerouting priority -150;", "meta l4proto tcp tproxy ip to 127.0.0.1:1 accept", "NFT_TPROXY"},
	{"type filter hook prerouting priority -150;", "meta l4proto tcp socket wildcard 0 accept", "NFT_SOCKET"},
	{"type filter hook prerouting priority -150;", "ct state new ct mark set 1", "NFT_CT"},
	{"type filter hook prerouting priority -150;", "meta l4proto tcp reject with tcp reset", "NFT_REJECT"},
	{"type route hook output priority -150;", "meta mark set 1", "NF_TABLES"},
	{"type nat hook postrouting priority 90;", "masquerade fully-random", "NFT_MASQ"},
	{"type nat hook input priority 100;", "meta nfproto ipv4 snat ip to 127.0.0.1", "NFT_NAT"},
	{"type nat hook prerouting priority -100;", "dnat ip to numgen random mod 2 map { 0 : 127.0.0.1, 1 : 127.0.0.2 }", "NFT_NUMGEN"},
}

// kernel finds what the kernel, or the nft command, cannot do. The kernel checks the rules as it does any, which loads modules, and
// takes none of them.
func kernel(ctx context.Context, _ *host) ([]Result, error) {
	var results []Result
	var all strings.Builder
	for i, f := range features {
		fmt.Fprintf(&all, "chain c%d { %s\n%s\n}\n", i, f.chain, f.rule)
	}
	if tryRules(ctx, all.String()) == nil {
		return nil, nil
	}
	for _, f := range features {
		if err := tryRules(ctx, fmt.Sprintf("chain c { %s\n%s\n}\n", f.chain, f.rule)); err != nil {
			results = append(results, Result{Level: Problem,
				Found: fmt.Sprintf("the kernel refuses the rule %q (%v): Services are not forwarded on this node", f.rule, err),
				Fix:   "use a kernel with CONFIG_" + f.option + " built in or as a module, and nft 1.0.1 or later",
			})
		}
	}
	return results, nil
}

// tryRules has the kernel check chains, without making them.
func tryRules(ctx context.Context, chains string) error {
	var notes bytes.Buffer
	cmd := exec.CommandContext(ctx, "nft", "--check", "-f", "-")
	cmd.Stdin, cmd.Stderr = strings.NewReader("table inet fairlead-check {\n"+chains+"}\n"), &notes
	if err := cmd.Run(); err != nil {
		first, _, _ := strings.Cut(notes.String(), "\n")
		return fmt.Errorf("%w: %s", err, first)
	}
	return nil
}
