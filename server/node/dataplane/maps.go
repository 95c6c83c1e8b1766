package dataplane

import (
	"fmt"
	"time"

	"sigs.k8s.io/knftables"
)

// mapTypes are the maps of frontends and the expressions that give them their types. A change of a frontend changes only their
// elements.
//
// Every map and set of the table is declared by typeof, and no verdict map is anonymous: what nft 1.1 stores beside the
// others makes the nft 1.0.6 of Debian 12 crash when it lists them, and with it a kube-proxy in nftables mode whose image
// contains that version.
var mapTypes = map[string]string{
	mapName(incoming, false, false): "ip daddr . meta l4proto . th dport : verdict",
	mapName(incoming, false, true):  "ip6 daddr . meta l4proto . th dport : verdict",
	mapName(incoming, true, false):  "meta l4proto . th dport : verdict",
	mapName(incoming, true, true):   "meta l4proto . th dport : verdict",
	mapName(own, false, false):      "ip daddr . meta l4proto . th dport : verdict",
	mapName(own, false, true):       "ip6 daddr . meta l4proto . th dport : verdict",
	mapName(own, true, false):       "meta l4proto . th dport : verdict",
	mapName(own, true, true):        "meta l4proto . th dport : verdict",
	mapName(aliasMap, false, false): "ip daddr . meta l4proto . th dport : ip daddr",
	mapName(aliasMap, false, true):  "ip6 daddr . meta l4proto . th dport : ip6 daddr",
}

// The maps of the living Envoy instances: from a connection's mark to the chain of its veth, and from the veth over which Envoy
// sends to the chain of its connections.
//
// Package splice lets what Envoy sends under a pod's address enter the host at the pod's link, with a mark of the instance and no
// class; the last map is from that mark to the chain of its connections.
const (
	markMap   = "marks"
	vethMap   = "veths"
	spliceMap = "spliced"
)

// instanceMaps are the types of the maps that addInstances fills.
var instanceMaps = map[string]string{markMap: "ct mark : verdict", vethMap: "iifname : verdict", spliceMap: "meta mark : verdict"}

// addMaps adds the maps of frontends and the sets of callers. A packet of a pod that dials a frontend adds the pair of the pod's
// address with itself; if Envoy then chooses that very pod as the endpoint, the packet's source and destination match the pair.
func addMaps(tx *knftables.Transaction) {
	for _, types := range []map[string]string{mapTypes, directMapTypes()} {
		for name, kind := range types {
			tx.Add(&knftables.Map{Name: name, TypeOf: kind})
			tx.Flush(&knftables.Map{Name: name})
		}
	}
	for name, kind := range instanceMaps {
		tx.Add(&knftables.Map{Name: name, TypeOf: kind})
	}
	for _, ipv6 := range []bool{false, true} {
		set := &knftables.Set{Name: mapName(clusterIPSet, false, ipv6), TypeOf: ip(ipv6) + " daddr"}
		tx.Add(set)
		tx.Flush(set)
		tx.Add(&knftables.Set{
			Name: mapName(callerSet, false, ipv6), TypeOf: fmt.Sprintf("%s saddr . %[1]s daddr", ip(ipv6)), Flags: []knftables.SetFlag{knftables.DynamicFlag},
			Timeout: knftables.PtrTo(time.Minute), Size: knftables.PtrTo[uint64](65_535),
		})
	}
}
