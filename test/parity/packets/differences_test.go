package packets

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// difference is something that Fairlead means to do in another way than kube-proxy, as far as packets show it.
type difference struct {
	row      string // How its row in translate/README.md begins.
	explains func(c cell, theirs, ours string) bool
	byChance string // What kube-proxy does, where that is a matter of chance.
}

var differences = []difference{
	{row: "a masqueraded connection to an endpoint in the node's own network", explains: masqueradedToItself},
	{row: "a pod of another node that dials a NodePort", explains: podOfAnotherNode, byChance: "dropped where a remote endpoint is drawn"},
	{row: "what is not TCP, from a node to a NodePort of its own", explains: barredAtOnce},
}

// masqueradedToItself: kube-proxy masquerades in the postrouting hook, which what the node itself receives does not pass.
func masqueradedToItself(c cell, theirs, ours string) bool {
	masquerades := c.service.external == corev1.ServiceExternalTrafficPolicyCluster
	if c.kind == clusterIP {
		masquerades = c.from == fromOutside
	}
	server, node := hereHost, "node"
	if c.kind != nodePort && (c.from == fromOtherPod || c.from == fromOtherNode) {
		server, node = thereHost, "other node"
	}
	kept := answer{string(server), "client"}
	theirs, always := strings.CutSuffix(theirs, alwaysTheSame)
	expected := parseAnswers(theirs)
	if !masquerades || !expected[kept] {
		return false
	}
	delete(expected, kept)
	expected[answer{string(server), node}] = true
	want := expected.String()
	if always {
		want += alwaysTheSame
	}
	return ours == want
}

// podOfAnotherNode: kube-proxy goes by the cluster's pod range, and sends such a pod to endpoints of all nodes; those of another
// node answer it directly, from an address that it has not dialled. Fairlead has it come from outside.
func podOfAnotherNode(c cell, theirs, ours string) bool {
	if c.kind != nodePort || c.from != fromOtherPod || c.service.external != corev1.ServiceExternalTrafficPolicyLocal {
		return false
	}
	local := ours == answers{{string(here), "client"}: true}.String() || ours == answers{{string(hereHost), "client"}: true}.String()
	theirs = strings.TrimSuffix(theirs, alwaysTheSame)
	return local && (theirs == dropped || theirs == dropped+"; "+ours)
}

// barredAtOnce: kube-proxy refuses what has reached the node; Fairlead what the node wants to send, which its sender hears from
// the system call.
func barredAtOnce(c cell, theirs, ours string) bool {
	ownNodePort := c.kind == nodePort && c.from == fromNode
	return ownNodePort && c.service.variant.protocol != corev1.ProtocolTCP && theirs == refused && ours == barred
}

// parseAnswers reads what String has written.
func parseAnswers(text string) answers {
	all := answers{}
	for part := range strings.SplitSeq(text, "; ") {
		by, sees, several := strings.Cut(part, " see the ")
		if !several {
			by, sees, _ = strings.Cut(part, " sees the ")
		}
		for one := range strings.SplitSeq(by, " and ") {
			all[answer{one, sees}] = true
		}
	}
	return all
}

// A rule explains what it is about and nothing near to it.
func TestRulesOfDifferences(t *testing.T) {
	const cluster, local = corev1.ServiceExternalTrafficPolicyCluster, corev1.ServiceExternalTrafficPolicyLocal
	tcp, udp := variant{protocol: corev1.ProtocolTCP}, variant{protocol: corev1.ProtocolUDP}
	for _, tc := range []struct {
		variant      variant
		external     corev1.ServiceExternalTrafficPolicy
		kind         kind
		from         origin
		theirs, ours string
		row          string // How it begins; empty: none.
	}{
		{tcp, cluster, nodePort, fromPod, "local-host sees the client", "local-host sees the node", "a masq"},
		{tcp, cluster, nodePort, fromPod, "local-host sees the client; remote-host sees the node", "local-host and remote-host see the node", "a masq"},
		{tcp, local, clusterIP, fromOutside, "local-host sees the client", "local-host sees the node", "a masq"},
		{tcp, cluster, loadBalancer, fromOtherPod, "remote-host sees the client", "remote-host sees the other node", "a masq"},
		{tcp, local, nodePort, fromPod, "local-host sees the client", "local-host sees the node", ""},
		{tcp, cluster, clusterIP, fromPod, "local-host sees the client", "local-host sees the node", ""},
		{tcp, cluster, nodePort, fromPod, "local sees the client", "local sees the node", ""},
		{tcp, cluster, nodePort, fromPod, "local-host sees the client; remote-host sees the node", "local-host sees the node", ""},
		{tcp, local, nodePort, fromOtherPod, "dropped; local sees the client", "local sees the client", "a pod"},
		{tcp, local, nodePort, fromOtherPod, "dropped; local sees the client, always the same", "local sees the client", "a pod"},
		{tcp, local, nodePort, fromOtherPod, "local sees the client", "dropped", ""},
		{tcp, local, nodePort, fromOutside, "dropped; local sees the client", "local sees the client", ""},
		{udp, local, nodePort, fromNode, refused, barred, "what is not TCP"},
		{tcp, local, nodePort, fromNode, refused, barred, ""},
		{udp, local, nodePort, fromOutside, refused, barred, ""},
		{udp, local, nodePort, fromNode, refused, dropped, ""},
	} {
		c := cell{service: &service{external: tc.external, variant: tc.variant}, kind: tc.kind, from: tc.from}
		row := ""
		if d := explain(c, tc.theirs, tc.ours); d != nil {
			row = d.row
		}
		if (row == "") != (tc.row == "") || !strings.HasPrefix(row, tc.row) {
			t.Errorf("%s from %s, %q and %q: explained by %q, want %q", tc.kind, tc.from, tc.theirs, tc.ours, row, tc.row)
		}
	}
}

// explain returns the difference that a cell shows, nil if none is known.
func explain(c cell, theirs, ours string) *difference {
	for i := range differences {
		if d := &differences[i]; d.explains(c, theirs, ours) {
			return d
		}
	}
	return nil
}

// Whoever looks up a difference finds its reason.
func TestDifferencesAreWrittenDown(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "..", "translate", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range differences {
		if !strings.Contains(string(text), "\n| "+d.row) {
			t.Errorf("translate/README.md has no row that begins with %q", d.row)
		}
	}
}
