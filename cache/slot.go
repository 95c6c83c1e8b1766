package cache

import (
	"cmp"
	"crypto/sha256"
	"slices"
	"strings"

	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	gcpresource "github.com/envoyproxy/go-control-plane/pkg/resource/v3"

	"github.com/fairlead/fairlead/translate/model"
)

// resourceName names a resource within a view.
type resourceName struct{ typeURL, name string }

func (n resourceName) compare(o resourceName) int {
	return cmp.Or(strings.Compare(n.typeURL, o.typeURL), strings.Compare(n.name, o.name))
}

// slot is the place of a Contribution, with the variants of it that connected views need.
type slot struct {
	id           string
	contribution Contribution
	variants     map[string]*variant
	rendered     map[string]*rendered // Variants that no viewer has acquired yet.
	err          error                // Why a variant could not be rendered, if so.
	held         []resourceName       // Where the slot is among Cache.holders.
}

// variant is what a contribution contributes to some views.
type variant struct {
	viewers int      // How many viewers need it.
	entries []*entry // In order of resourceName. Immutable.
}

// entry is one resource as streams send it. All of them share the messages, which are never altered; marshalling a
// message concurrently is safe.
type entry struct {
	plain  *discoverypb.Resource // To clients that ask.
	traced *discoverypb.Resource // To clients that see it change: with the trace of the change, where there was one.

	assignment string // As Resource.assignment.
}

// newEntry returns a resource as streams send it.
func newEntry(r Resource, trace *corepb.Metadata) *entry {
	e := &entry{plain: &discoverypb.Resource{Name: r.Name, Version: r.Version, Resource: r.Body}, assignment: r.assignment}
	e.traced = e.plain
	if trace != nil {
		e.traced = &discoverypb.Resource{Name: r.Name, Version: r.Version, Resource: r.Body, Metadata: trace}
	}
	return e
}

func (e *entry) name() resourceName {
	return resourceName{e.plain.GetResource().GetTypeUrl(), e.plain.GetName()}
}
func (e *entry) version() string { return e.plain.GetVersion() }

// of returns the variant that a viewer needs, nil without a slot.
func (s *slot) of(view model.View) *variant {
	if s == nil {
		return nil
	}
	return s.variants[s.contribution.Variant(view)]
}

// acquire counts one more viewer of its variant. If no other did, it makes the variant of what lockRendered has rendered,
// and returns it. prior is the slot that s replaces, if any.
func (s *slot) acquire(view model.View, prior *slot, trace *corepb.Metadata) (made *variant) {
	name := s.contribution.Variant(view)
	v := s.variants[name]
	if v == nil {
		var before *variant
		if prior != nil {
			before = prior.variants[name]
		}
		r := s.rendered[name]
		if r == nil { // Then it is rendered here, with the lock: no client ever lacks what it is to have.
			r = s.render(name)
		}
		delete(s.rendered, name)
		if s.err == nil {
			s.err = r.err
		}
		v = &variant{entries: entriesOf(r.resources, before, trace)}
		s.variants[name] = v
		made = v
	}
	v.viewers++
	return made
}

// release counts one viewer less of its variant. The variant that most views share stays: the next client will
// need it again.
func (s *slot) release(view model.View) {
	name := s.contribution.Variant(view)
	v := s.variants[name]
	v.viewers--
	if v.viewers == 0 && name != "" {
		delete(s.variants, name)
	}
}

// entriesOf turns resources into entries. An entry that equals one before stays the same, with the trace of its own last
// change.
func entriesOf(resources []Resource, before *variant, trace *corepb.Metadata) []*entry {
	entries := make([]*entry, len(resources))
	for i, r := range resources {
		if e := before.find(r.key()); e != nil && e.version() == r.Version {
			entries[i] = e
			continue
		}
		entries[i] = newEntry(r, trace)
	}
	return entries
}

// coverClusters makes the version of an assignment cover the clusters that refer to it.
//
// A cluster that is new or changed stays warming, and so forwards nothing new, until an assignment arrives after it.
// Envoy subscribes to the assignment by name, and with delta xDS sends no request when it already watches the name for
// another cluster or for the one before: it waits for a push, and only after initial_fetch_timeout (15 s unless set)
// goes on with what it has. So an assignment must be sent again whenever a cluster that uses it is. With its version
// covering the clusters' names and versions that follows from the rule that changes are sent, on every stream and
// after every reconnect, and replicas still agree; the order of types (sendOrder) puts it after the clusters.
func coverClusters(resources []Resource) {
	users := map[string][]byte{}
	for _, r := range resources {
		if r.assignment != "" {
			text := users[r.assignment]
			users[r.assignment] = append(append(append(text, r.Name...), 0), r.Version...)
		}
	}
	for i := range resources {
		r := &resources[i]
		if text := users[r.Name]; r.TypeURL == gcpresource.EndpointType && text != nil {
			sum := sha256.Sum256(append(append(text, 0), r.Version...))
			r.Version = versionOf(sum[:])
		}
	}
}

// find returns the entry of a name, nil if there is none.
func (v *variant) find(n resourceName) *entry {
	if v == nil {
		return nil
	}
	i, found := slices.BinarySearchFunc(v.entries, n, func(e *entry, n resourceName) int { return e.name().compare(n) })
	if !found {
		return nil
	}
	return v.entries[i]
}

// ofType returns the entries of a type.
func (v *variant) ofType(typeURL string) []*entry {
	from, _ := slices.BinarySearchFunc(v.entries, typeURL, func(e *entry, t string) int {
		return strings.Compare(e.name().typeURL, t)
	})
	to := from
	for to < len(v.entries) && v.entries[to].name().typeURL == typeURL {
		to++
	}
	return v.entries[from:to]
}
