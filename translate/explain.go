package translate

// Use says whether an endpoint is in a set and, if not, why. The list is closed.
type Use string

// The uses.
const (
	Used        Use = "used"
	NotReady    Use = "not ready"
	Terminating Use = "terminating"              // And there are ready ones, or it does not serve any more.
	OtherNode   Use = "hinted to another node"   //
	OtherZone   Use = "hinted to another zone"   //
	NotLocal    Use = "not on this node"         // And the traffic policy is Local.
	Duplicate   Use = "duplicate"                // Another slice, or the same one, has the address and port too.
	WrongFamily Use = "wrong family"             // The Service has no cluster IP of the endpoint's family.
	WrongPort   Use = "no port of the Service's" // Its slice has no port with the name and protocol of the Service's port.
)

// Hints says whether topology hints narrow the cluster set of a view.
type Hints string

// The uses of hints.
const (
	HintsUnused  Hints = ""
	HintsForNode Hints = "node"
	HintsForZone Hints = "zone"
)
