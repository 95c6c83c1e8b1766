// Command coredns is CoreDNS with no more plugins than a cluster's resolver needs. CoreDNS keeps its usual order of
// plugins: the list of directives names them all, and one that is not linked in is only missed by a Corefile that
// asks for it.
package main

import (
	"github.com/coredns/coredns/coremain"

	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/health" // For lameduck: it answers on while nodes learn that it goes.
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/ready"
)

func main() { coremain.Run() }
