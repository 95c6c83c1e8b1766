package hostcheck

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/fairlead/fairlead/server/lab"
)

// The tests run on the kernel's nftables, links and settings, in a network namespace that only they see.
func TestMain(m *testing.M) {
	code, err := lab.Isolated(m.Run)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(code)
}

// command runs a program with an input.
func command(t *testing.T, input, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Stdin = strings.NewReader(input)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
}

// program writes rules for nft, which wants each closing brace on a line of its own.
func program(t *testing.T, rules string) {
	t.Helper()
	command(t, strings.NewReplacer("; }", ";\n}\n", "{ }", "{\n}\n", "} table", "}\ntable").Replace(rules), "nft", "-f", "-")
}

// setSysctl sets a setting until the test ends.
func setSysctl(t *testing.T, name, value string) {
	t.Helper()
	path := "/proc/sys/net/" + name
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(value), 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.WriteFile(path, before, 0); err != nil {
			t.Error(err)
		}
	})
}

// quiet gives a test a namespace in which nothing stands in the way, until it ends.
func quiet(t *testing.T) {
	t.Helper()
	setSysctl(t, "ipv4/ip_forward", "1")
	if _, err := os.Stat("/proc/sys/net/ipv6"); err == nil {
		setSysctl(t, "ipv6/conf/all/forwarding", "1")
	}
	t.Cleanup(func() {
		if out, err := exec.Command("nft", "flush", "ruleset").CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
}

// found carries out the checks and returns which ones found what, as "check level", with the text of it all.
func found(t *testing.T, config Config) (what []string, text string) {
	t.Helper()
	results, err := Run(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, r := range results {
		seen[r.Check] = true
		if r.Level == OK {
			continue
		}
		what, text = append(what, r.Check+" "+string(r.Level)), text+r.Found+"\n"
		if r.Fix == "" || r.Found == "" {
			t.Errorf("%+v does not say what to do", r)
		}
	}
	if len(seen) != len(checks) {
		t.Errorf("results of %d checks, want %d", len(seen), len(checks))
	}
	return what, text
}

// rulesets are rules that other programs make, and the one check that finds them.
var rulesets = map[string]struct {
	rules string
	want  string // "check level"; empty: nothing.
	says  string
}{
	"no rules": {},
	"Fairlead's own": {rules: `table inet fairlead {
		chain prerouting { type filter hook prerouting priority -150; tcp dport 1 drop; }
		chain nat-to-envoy { type nat hook postrouting priority 90; snat ip to ip saddr; } }`},
	"a masquerade after Fairlead's": {rules: `table ip cni { chain p { type nat hook postrouting priority 100; oifname != "cni0" masquerade; } }`},
	"a masquerade before Fairlead's": {
		rules: `table ip cni { chain p { type nat hook postrouting priority 80; oifname != "cni0" masquerade; } }`,
		want:  "source-nat problem", says: "chain ip cni p has masquerade at priority 80",
	},
	"a masquerade beside Fairlead's, two jumps away": {
		rules: `table inet cni { chain m { masquerade; }
			map pods { type ipv4_addr : verdict; elements = { 10.244.0.1 : jump m } }
			chain v { ip saddr vmap @pods; }
			chain p { type nat hook postrouting priority 90; jump v; } }`,
		want: "source-nat problem", says: "chain inet cni p",
	},
	"a masquerade that no early chain leads to": {
		rules: `table inet cni { chain m { masquerade; }
			chain p { type nat hook postrouting priority 100; jump m; }
			chain early { type nat hook postrouting priority 80; accept; } }`,
	},
	"a DNAT after Fairlead's": {rules: `table ip docker { chain d { type nat hook prerouting priority -100; tcp dport 80 dnat to 10.0.0.1; } }`},
	"a DNAT before Fairlead's": {
		rules: `table ip docker { chain d { type nat hook output priority -110; tcp dport 80 redirect to 81; } }`,
		want:  "destination-nat problem", says: "chain ip docker d has redirect at priority -110",
	},
	"untracked packets": {
		rules: `table ip raw { chain r { type filter hook prerouting priority -300; tcp dport 80 notrack; } }`,
		want:  "earlier-rules note", says: "chain ip raw r has notrack at priority -300",
	},
	"drops by a map's verdict": {
		rules: `table inet fw { chain r { type filter hook prerouting priority -200; tcp dport vmap { 80 : drop, 81 : accept }; } }`,
		want:  "earlier-rules note", says: "chain inet fw r has drop",
	},
	"drops after Fairlead's": {rules: `table inet fw { chain r { type filter hook prerouting priority 0; tcp dport 80 drop; } }`},
	"a forward chain that drops": {
		rules: `table inet firewalld { chain f { type filter hook forward priority 10; policy drop; } }`,
		want:  "forward-policy note", says: "chain inet firewalld f drops",
	},
	"Calico": {
		rules: `table ip filter { chain cali-FORWARD { } }`,
		want:  "network-policy note", says: "Calico filters here",
	},
	"kube-router": {
		rules: `table ip filter { chain KUBE-ROUTER-FORWARD { } chain KUBE-ROUTER-INPUT { } }`,
		want:  "network-policy note", says: "kube-router filters here",
	},
	"kube-proxy's nftables, stale": {
		rules: `table ip kube-proxy { chain services { } }`,
		want:  "kube-proxy problem", says: "table ip kube-proxy are kube-proxy's, and no kube-proxy answers",
	},
	"kube-proxy's iptables, stale": {
		rules: `table ip nat { chain KUBE-SERVICES { } } table ip filter { chain KUBE-FIREWALL { } }`,
		want:  "kube-proxy problem", says: "chain ip nat KUBE-SERVICES are",
	},
}

// Each check finds what other programs' rules do, and no other check takes it for something else.
func TestRules(t *testing.T) {
	for name, test := range rulesets {
		t.Run(name, func(t *testing.T) {
			quiet(t)
			program(t, test.rules)
			what, text := found(t, Config{})
			if got := strings.Join(what, ", "); got != test.want || !strings.Contains(text, test.says) {
				t.Errorf("found %q, want %q with %q:\n%s", got, test.want, test.says, text)
			}
			command(t, "", "nft", "flush", "ruleset")
			if what, text := found(t, Config{}); len(what) > 0 {
				t.Errorf("after the rules are gone: %s", text)
			}
		})
	}
}

// The rules of a kube-proxy that runs are no fault. An agent that answers in its place is no kube-proxy.
func TestKubeProxyRuns(t *testing.T) {
	quiet(t)
	command(t, "", "ip", "link", "set", "lo", "up")
	program(t, "table ip kube-proxy { chain services { } }")
	for answer, want := range map[string]int{"iptables": 0, "fairlead": 1} {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, answer) }))
		config := Config{Proxy: []string{"http://127.0.0.1:1/proxyMode", s.URL}}
		if what, text := found(t, config); len(what) != want {
			t.Errorf("%s answers: %s", answer, text)
		}
		s.Close()
	}
}

// What the node's settings break.
func TestSettings(t *testing.T) {
	for name, test := range map[string]struct {
		set, value string
		want       string
	}{
		"no forwarding":                {"ipv4/ip_forward", "0", "ip-forwarding problem"},
		"strict on all links":          {"ipv4/conf/all/rp_filter", "1", "rp-filter problem"},
		"strict on Envoy's link":       {"ipv4/conf/fl1k/rp_filter", "1", "rp-filter problem"},
		"loose on Envoy's link":        {"ipv4/conf/fl1k/rp_filter", "2", ""},
		"strict on another's own link": {"ipv4/conf/lo/rp_filter", "1", ""},
	} {
		t.Run(name, func(t *testing.T) {
			quiet(t)
			command(t, "", "ip", "link", "add", "fl1k", "type", "veth", "peer", "name", "keep")
			t.Cleanup(func() { command(t, "", "ip", "link", "del", "fl1k") })
			setSysctl(t, "ipv4/conf/fl1k/rp_filter", "0")
			setSysctl(t, "ipv4/conf/all/rp_filter", "0")
			setSysctl(t, test.set, test.value)
			if what, text := found(t, Config{}); strings.Join(what, ", ") != test.want {
				t.Errorf("found %q, want %q: %s", what, test.want, text)
			}
		})
	}
}

// newPodLink makes a link to a namespace of its own, as a CNI does for a pod, until the test ends.
func newPodLink(t *testing.T, mtu int) netlink.Link {
	t.Helper()
	pod, err := namespace()
	if err != nil {
		t.Fatal(err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = "vethpod", mtu
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerMTU: uint32(mtu), PeerNamespace: netlink.NsFd(pod)}
	if err := netlink.LinkAdd(veth); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := netlink.LinkDel(veth); err != nil {
			t.Error(err)
		}
		_ = pod.Close()
	})
	if err := netlink.LinkSetUp(veth); err != nil {
		t.Fatal(err)
	}
	return veth
}

// namespace makes a network namespace from a thread that ends with the goroutine.
func namespace() (netns.NsHandle, error) {
	type made struct {
		ns  netns.NsHandle
		err error
	}
	result := make(chan made)
	go func() {
		runtime.LockOSThread() // And never unlocked: the thread has another namespace from here on.
		ns, err := netns.New()
		result <- made{ns, err}
	}()
	m := <-result
	return m.ns, m.err
}

// An overlay has to be as wide as the links of pods.
func TestMTU(t *testing.T) {
	for overlay, want := range map[string]string{"1450": "mtu problem", "1500": ""} {
		t.Run(overlay, func(t *testing.T) {
			quiet(t)
			newPodLink(t, 1500)
			command(t, "", "ip", "link", "add", "flannel.1", "mtu", overlay, "type", "vxlan", "id", "1", "dstport", "8472")
			defer command(t, "", "ip", "link", "del", "flannel.1")
			command(t, "", "ip", "link", "set", "flannel.1", "up")
			if what, text := found(t, Config{}); strings.Join(what, ", ") != want {
				t.Errorf("found %q, want %q: %s", what, want, text)
			}
		})
	}
}

func TestTracked(t *testing.T) {
	for _, test := range []struct{ count, limit, want int }{{0, 0, 0}, {5, 0, 0}, {89, 100, 0}, {90, 100, 1}, {100, 100, 1}} {
		if got := tracked(test.count, test.limit); len(got) != test.want {
			t.Errorf("%d of %d: %v", test.count, test.limit, got)
		}
	}
}

// The last of systemd-networkd's files counts, and one in /etc in the place of one of the same name elsewhere.
func TestNetworkd(t *testing.T) {
	const yes, no = "[Network]\nManageForeignRoutingPolicyRules=yes\n", "[Network]\n ManageForeignRoutingPolicyRules = no\n"
	for name, test := range map[string]struct {
		files map[string]string
		want  int
	}{
		"does not run":       {map[string]string{"etc/systemd/networkd.conf": yes}, 0},
		"runs":               {map[string]string{"run/systemd/netif/state": ""}, 1},
		"keeps":              {map[string]string{"run/systemd/netif/state": "", "etc/systemd/networkd.conf": no}, 0},
		"commented out":      {map[string]string{"run/systemd/netif/state": "", "etc/systemd/networkd.conf": "#ManageForeignRoutingPolicyRules=no\n"}, 1},
		"a later file":       {map[string]string{"run/systemd/netif/state": "", "etc/systemd/networkd.conf": no, "run/systemd/networkd.conf.d/9.conf": yes}, 1},
		"by order of names":  {map[string]string{"run/systemd/netif/state": "", "etc/systemd/networkd.conf.d/1.conf": yes, "usr/lib/systemd/networkd.conf.d/2.conf": no}, 0},
		"in another's place": {map[string]string{"run/systemd/netif/state": "", "etc/systemd/networkd.conf.d/1.conf": no, "usr/lib/systemd/networkd.conf.d/1.conf": yes}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			for path, content := range test.files {
				path = filepath.Join(root, path)
				if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			got, err := networkd(t.Context(), &host{config: Config{Root: root}})
			if err != nil || len(got) != test.want {
				t.Errorf("found %v, %v; want %d", got, err, test.want)
			}
		})
	}
}

// A feature that the kernel does not have is named alone.
func TestKernel(t *testing.T) {
	all := features
	t.Cleanup(func() { features = all })
	features = append(all[:len(all):len(all)], struct{ chain, rule, option string }{"type filter hook input priority 0;", "teleport", "NFT_TELEPORT"})
	got, err := kernel(t.Context(), nil)
	if err != nil || len(got) != 1 || !strings.Contains(got[0].Found, "teleport") || !strings.Contains(got[0].Fix, "CONFIG_NFT_TELEPORT") {
		t.Errorf("found %v, %v", got, err)
	}
	if out, err := exec.Command("nft", "list", "tables").CombinedOutput(); err != nil || strings.Contains(string(out), "fairlead-check") {
		t.Errorf("the check leaves %s, %v", out, err)
	}
}
