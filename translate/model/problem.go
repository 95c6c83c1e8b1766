package model

import (
	"cmp"
	"strings"
)

// Reason classifies a Problem. The list is closed.
type Reason string

// Problem is something wrong with one object. The object's other parts, and all other objects, are forwarded.
type Problem struct {
	Object  string `json:"object"` // Kind namespace/name, or a file.
	Reason  Reason `json:"reason"`
	Message string `json:"message"` // Names the field, the value and the fix.
}

// Compare orders problems by object, reason and message.
func (p Problem) Compare(o Problem) int {
	return cmp.Or(strings.Compare(p.Object, o.Object), cmp.Compare(p.Reason, o.Reason), strings.Compare(p.Message, o.Message))
}

// The reasons.
const (
	InvalidObject       Reason = "InvalidObject"       // Cannot be read as what it claims to be.
	InvalidName         Reason = "InvalidName"         // Not a name that Kubernetes accepts.
	InvalidAddress      Reason = "InvalidAddress"      // Not an address, or one that nothing can be forwarded to.
	InvalidPort         Reason = "InvalidPort"         // Not a port that can be served.
	InvalidField        Reason = "InvalidField"        // A field that its object does not have, or has twice.
	InvalidValue        Reason = "InvalidValue"        // A field with a value outside its closed list.
	UnknownProtocol     Reason = "UnknownProtocol"     // Neither TCP, UDP nor SCTP.
	WrongFamily         Reason = "WrongFamily"         // An address of another family than its object's.
	DuplicateFrontend   Reason = "DuplicateFrontend"   // Another Service has the address, port and protocol.
	DuplicateObject     Reason = "DuplicateObject"     // Two manifests describe the same object.
	TooManyEndpoints    Reason = "TooManyEndpoints"    // More endpoints than one assignment, or all of a Service, can carry.
	TooManyFrontends    Reason = "TooManyFrontends"    // More addresses times ports than a Service can have.
	TooManySourceRanges Reason = "TooManySourceRanges" // More source ranges than a Service can have.
	UnsupportedObject   Reason = "UnsupportedObject"   // An object in whose place another kind or version is needed.
	UnknownNode         Reason = "UnknownNode"         // A view of a node that no object describes.
	PortUnavailable     Reason = "PortUnavailable"     // A port that a node cannot listen on.
	UnknownPods         Reason = "UnknownPods"         // A node that cannot distinguish its pods from outsiders.
	NotSpliced          Reason = "NotSpliced"          // A node on which pods' connections to Services take the host's hooks.
	HostObstacle        Reason = "HostObstacle"        // Something on a node that stands in the way of Services' packets.
	ListShrank          Reason = "ListShrank"          // A list that lacks most of what was there.
	Unreadable          Reason = "Unreadable"          // A file that cannot be read or parsed.
)

// Reasons are all reasons, so that each can be counted before there is a problem of it.
var Reasons = []Reason{
	InvalidObject, InvalidName, InvalidAddress, InvalidPort, InvalidField, InvalidValue, UnknownProtocol, WrongFamily, DuplicateFrontend,
	DuplicateObject, TooManyEndpoints, TooManyFrontends, TooManySourceRanges, UnsupportedObject, UnknownNode, PortUnavailable, UnknownPods,
	NotSpliced, HostObstacle, ListShrank, Unreadable,
}
