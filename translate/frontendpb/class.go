package frontendpb

import (
	"net/netip"

	"github.com/fairlead/fairlead/translate/model"
)

// Classes are the classes of connections that are forwarded, in order. On a node each has one veth pair to Envoy, one listener
// of each family and its chains.
var Classes = []Class{Class_KEEP, Class_MASQ, Class_EXTERNAL}

// classNames are the names of the classes in listeners, links and chains.
var classNames = map[Class]string{Class_KEEP: "keep", Class_MASQ: "masq", Class_EXTERNAL: "external"}

// Label returns the name of a class in listeners, links and chains; empty for one that is not among Classes.
func (c Class) Label() string { return classNames[c] }

// classes is the class of a forwarded connection, by the source that its route has and by its origin. A host's own address
// cannot be spoofed from a veth, since its replies would never leave the host: a node's own connections are always masqueraded.
var classes = map[model.Source][model.Origins]Class{
	model.Preserve:   {model.FromPod: Class_KEEP, model.FromNode: Class_MASQ, model.FromOutside: Class_KEEP},
	model.Masquerade: {model.FromPod: Class_MASQ, model.FromNode: Class_MASQ, model.FromOutside: Class_MASQ},
}

// ClassOf returns the class of connections to a frontend from an origin, and unspecified where they are not forwarded.
func ClassOf(f *model.Frontend, origin model.Origin) Class {
	r := f.Routes[origin]
	if r.Verdict != model.Forward {
		return Class_CLASS_UNSPECIFIED
	}
	class := classes[r.Source][origin]
	if class == Class_KEEP && origin == model.FromOutside && f.ExternalEndpoints() {
		return Class_EXTERNAL
	}
	return class
}

// Addr returns the address that clients dial; the zero Addr for a NodePort.
func (f *Frontend) Addr() netip.Addr {
	a, _ := netip.AddrFromSlice(f.GetAddress())
	return a
}
