package kube

import (
	"fmt"
	"net/netip"
	"strings"
	"unicode"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/fairlead/fairlead/translate/model"
)

// maxProblems is how many problems of one object are listed. An object can hold thousands of broken parts, and the first
// few show what is wrong with them.
const maxProblems = 10

// maxText is how many bytes of a value from an object are shown.
const maxText = 80

// report collects what is wrong with one object.
type report struct {
	object   string
	problems []model.Problem
	unlisted int
}

// newReport returns an empty report about an object. Its name may be anything, and is going to be shown on terminals.
func newReport(key model.ObjectKey) *report {
	printable := strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return unicode.ReplacementChar
	}, key.String())
	return &report{object: shorten(printable)}
}

// add adds a problem. The message names the field, the value and the fix.
func (r *report) add(reason model.Reason, format string, args ...any) {
	if len(r.problems) == maxProblems {
		r.unlisted++
		return
	}
	r.problems = append(r.problems, model.Problem{Object: r.object, Reason: reason, Message: fmt.Sprintf(format, args...)})
}

// list returns the problems.
func (r *report) list() []model.Problem {
	if r.unlisted == 0 {
		return r.problems
	}
	return append(r.problems, model.Problem{
		Object:  r.object,
		Reason:  model.InvalidObject,
		Message: fmt.Sprintf("%d more of its parts cannot be used and are not listed; correct those that are", r.unlisted),
	})
}

// label adds a problem if a name is not one that Kubernetes gives to Services, namespaces and ports.
func (r *report) label(field, name string) bool {
	return r.name(field, name, "at most 63 small letters, digits and dashes, with a letter or digit at both ends", validation.IsDNS1123Label)
}

// subdomain adds a problem if a name is not one that Kubernetes gives to most objects.
func (r *report) subdomain(field, name string) bool {
	return r.name(field, name, "at most 253 small letters, digits, dashes and dots, with a letter or digit at both ends of each part", validation.IsDNS1123Subdomain)
}

func (r *report) name(field, name, rule string, faults func(string) []string) bool {
	if len(faults(name)) == 0 {
		return true
	}
	r.add(model.InvalidName, "%s: %s (%d bytes) is not a name that Kubernetes accepts; rename it, to %s", field, quote(name), len(name), rule)
	return false
}

// address reads an IP address, and adds a problem if it is none. IPv4 addresses written as IPv6 are read as IPv4, as in
// kube-proxy; numbers with leading zeros are not read, because programs disagree on whether they are octal.
func (r *report) address(field, text string) (netip.Addr, bool) {
	a, err := netip.ParseAddr(text)
	if err != nil || a.Zone() != "" {
		r.add(model.InvalidAddress, "%s: %s is not an IP address; write it like 10.1.2.3, without leading zeros, or like fd00::1, without a zone", field, quote(text))
		return netip.Addr{}, false
	}
	return a.Unmap(), true
}

// routable adds a problem if nothing can be forwarded to or from an address beyond one host or link.
func (r *report) routable(field string, a netip.Addr, linkLocal bool) bool {
	var sort string
	switch {
	case a.IsUnspecified():
		sort = "the unspecified address"
	case a.IsLoopback():
		sort = "a loopback address, which means another host on each node"
	case a.IsMulticast():
		sort = "a multicast address"
	case a.IsLinkLocalUnicast() && !linkLocal:
		sort = "a link-local address, which means another host on each link"
	case a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		sort = "the broadcast address"
	default:
		return true
	}
	r.add(model.InvalidAddress, "%s: %s is %s; give an address that every node reaches", field, a, sort)
	return false
}

// port adds a problem if a number is not a port's.
func (r *report) port(field string, number int32) bool {
	if number >= 1 && number <= 65535 {
		return true
	}
	r.add(model.InvalidPort, "%s: %d is not a port; choose one from 1 to 65535", field, number)
	return false
}

// protocol reads a protocol, TCP if there is none, and adds a problem if it is unknown.
func (r *report) protocol(field, text string) (model.Protocol, bool) {
	switch p := model.Protocol(text); p {
	case "":
		return model.TCP, true
	case model.TCP, model.UDP, model.SCTP:
		return p, true
	default:
		r.add(model.UnknownProtocol, "%s: %s is not a protocol of Services; write TCP, UDP or SCTP, in capitals", field, quote(text))
		return "", false
	}
}

// quote returns a value for a message.
func quote(s string) string { return fmt.Sprintf("%q", shorten(s)) }

// shorten keeps a value that is longer than any correct one from filling a screen.
func shorten(s string) string {
	if len(s) <= maxText {
		return s
	}
	return strings.ToValidUTF8(s[:maxText], "") + "…"
}
