package hostcheck

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/fairlead/fairlead/server/node/envoyns"
)

// forwarding finds out whether the kernel routes between links at all.
func forwarding(context.Context, *host) ([]Result, error) {
	names := []string{"ipv4/ip_forward"}
	if envoyns.IPv6() {
		names = append(names, "ipv6/conf/all/forwarding")
	}
	var results []Result
	for _, name := range names {
		value, err := sysctl(name)
		if err != nil {
			return results, err
		}
		if value == "0" {
			dotted := "net." + strings.ReplaceAll(name, "/", ".")
			results = append(results, Result{Level: Problem,
				Found: dotted + " is 0: the kernel forwards nothing between pods, Envoy and other nodes", Fix: "sysctl -w " + dotted + "=1, and keep it in /etc/sysctl.d",
			})
		}
	}
	return results, nil
}

// fullShare is the share of the table of connections from which it counts as full: bursts fill the rest within seconds.
const fullShare = 0.9

// conntrack finds a table of connections that is full, or nearly.
func conntrack(context.Context, *host) ([]Result, error) {
	var numbers [2]int
	for i, name := range []string{"netfilter/nf_conntrack_count", "netfilter/nf_conntrack_max"} {
		text, err := sysctl(name)
		if err != nil || text == "" {
			return nil, err // The kernel tracks no connection yet.
		}
		if numbers[i], err = strconv.Atoi(text); err != nil {
			return nil, fmt.Errorf("sysctl %s: %w", name, err)
		}
	}
	return tracked(numbers[0], numbers[1]), nil
}

// tracked judges how many connections the kernel tracks of how many it can; 0 is no limit.
func tracked(count, limit int) []Result {
	if limit == 0 || float64(count) < fullShare*float64(limit) {
		return nil
	}
	return []Result{{Level: Problem,
		Found: fmt.Sprintf("the kernel tracks %d connections of at most %d: it drops the first packet of each further one, whatever it is for", count, limit),
		Fix:   "raise net.netfilter.nf_conntrack_max (the agent's --conntrack-max-per-core), and see in conntrack -L who has so many",
	}}
}

// keepsRules is the setting of systemd-networkd without which it removes the routing rules of others when it starts.
const keepsRules = "ManageForeignRoutingPolicyRules"

// networkd finds a systemd-networkd that removes Fairlead's routing rules.
func networkd(_ context.Context, h *host) ([]Result, error) {
	if h.config.Root == "" {
		return nil, nil
	}
	if _, err := os.Stat(h.path("run/systemd/netif/state")); err != nil {
		return nil, nil // It does not run.
	}
	value, err := h.networkdSetting(keepsRules)
	if err != nil {
		return nil, err
	}
	if slices.Contains([]string{"no", "false", "0", "off", "n", "f"}, strings.ToLower(value)) {
		return nil, nil
	}
	return []Result{{Level: Note,
		Found: "systemd-networkd removes routing rules that are not its own when it starts, as in an upgrade: connections to Services fail until the agent has put Fairlead's back",
		Fix:   "write [Network] and " + keepsRules + "=no to /etc/systemd/networkd.conf.d/fairlead.conf, and restart systemd-networkd",
	}}, nil
}

// networkdSetting returns a setting of systemd-networkd's configuration: the last of the main file and those beside it, which are
// read in the order of their names, one in /etc in the place of one in /run or /usr/lib.
func (h *host) networkdSetting(name string) (string, error) {
	dropIns := map[string]string{}
	var main string
	for _, folder := range []string{"usr/lib/systemd", "run/systemd", "etc/systemd"} {
		if path := h.path(folder + "/networkd.conf"); exists(path) {
			main = path
		}
		found, err := filepath.Glob(h.path(folder + "/networkd.conf.d/*.conf"))
		if err != nil {
			return "", fmt.Errorf("systemd-networkd's configuration: %w", err)
		}
		for _, path := range found {
			dropIns[filepath.Base(path)] = path
		}
	}
	var files []string
	for base := range dropIns {
		files = append(files, base)
	}
	slices.Sort(files)
	for i, base := range files {
		files[i] = dropIns[base]
	}
	if main != "" {
		files = slices.Insert(files, 0, main)
	}
	value := ""
	for _, path := range files {
		content, err := os.Open(path)
		if err != nil {
			return "", fmt.Errorf("systemd-networkd's configuration: %w", err)
		}
		lines := bufio.NewScanner(content)
		for lines.Scan() {
			if key, v, ok := strings.Cut(lines.Text(), "="); ok && strings.TrimSpace(key) == name {
				value = strings.TrimSpace(v)
			}
		}
		_ = content.Close()
	}
	return value, nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
