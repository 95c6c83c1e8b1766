// Package splice takes the connections of the node's pods to Services off at the pod's own link. A packet from a pod to a frontend goes
// straight into Envoy's namespace, and the connection that Envoy then opens under the pod's address enters the host's stack at the
// pod's link, as if the pod had dialled the endpoint itself. So the host, its CNI plugin and whoever enforces policies on it see one
// connection, pod to endpoint.
//
// Two programs do so at the tcx hooks of links: one at pods' links, one at Envoys' veths of class keep. Frontends, links and
// instances come in; the programs and their maps go to the kernel, where they stay without the agent. Only TCP to frontends of
// the classes keep and external at addresses of their own is spliced. What the programs pass on takes the host's hooks, which package
// dataplane programs, and every connection may change to them at any time.
package splice

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"

	"github.com/fairlead/fairlead/server/node/dataplane"
	"github.com/fairlead/fairlead/server/node/envoyns"
	"github.com/fairlead/fairlead/translate/envoy"
	"github.com/fairlead/fairlead/translate/frontendpb"
	"github.com/fairlead/fairlead/translate/model"
)

// Link is a link behind which a pod is.
type Link struct {
	Index int // Of the node's end.
	Route int // The index of the link by which the node routes to the pod: the same, or that of its bridge.
}

// Splice is a node's. It is used by one goroutine.
type Splice struct {
	config  envoyns.Config
	maps    maps
	program *ebpf.Program // For pods' links.

	wanted   map[string]*frontendpb.Frontend
	keys     map[string]frontend // By the frontend's name.
	changed  map[string]bool     // Names of frontends that differ from what the kernel may have.
	aliases  []envoy.Alias
	complete bool // The kernel's map of frontends differs in none but the changed.

	links     map[int]int // What is attached: the indexes of pods' links, with those of the routes.
	instances map[envoyns.ID]bool
	inspected bool // Programs were looked for since the last Inspect.
}

// Open returns the node's splice, with the flows of an earlier agent's. Nothing is attached yet. An error is the kernel's, which
// has no BPF or refuses it.
func Open(config envoyns.Config) (*Splice, error) {
	earlier, err := earlierMaps()
	if err != nil {
		return nil, err
	}
	s := &Splice{
		config: config, wanted: map[string]*frontendpb.Frontend{}, keys: map[string]frontend{}, changed: map[string]bool{},
		links: map[int]int{}, instances: map[envoyns.ID]bool{}, inspected: true,
	}
	if s.maps, err = openMaps(earlier); err == nil {
		s.program, err = load(podName, podProgram(s.maps, config.Mask))
	}
	if err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// Close forgets the splice. What is attached stays in the kernel.
func (s *Splice) Close() {
	s.maps.close()
	if s.program != nil {
		_ = s.program.Close()
	}
}

// SetFrontend has the next Commit splice connections to the frontend of that name, if f is one of those; nil removes it.
func (s *Splice) SetFrontend(name string, f *frontendpb.Frontend) {
	s.changed[name] = true
	if f == nil {
		delete(s.wanted, name)
	} else {
		s.wanted[name] = f
	}
}

// Inspect has the next Commit look whether the programs are still attached.
func (s *Splice) Inspect() { s.inspected = false }

// Commit has the kernel splice what was set, from pods behind these links, to the current Envoy. It is called after the host's table
// has the frontends, so that what is passed on goes the same way, and before Envoy loses what the table no longer has. After an
// error the next Commit does the rest.
func (s *Splice) Commit(instances dataplane.Instances, aliases []envoy.Alias, links []Link) error {
	if !slices.Equal(aliases, s.aliases) {
		s.aliases, s.complete = slices.Clone(aliases), false
	}
	err := errors.Join(s.commitInstances(instances), s.commitFrontends(), s.commitLinks(links))
	s.inspected = s.inspected || err == nil
	return err
}

// class returns the class of connections from pods to a frontend; 0 if they are not spliced. A frontend at an address of the node,
// as a NodePort is, needs the host's NAT to get to Envoy; one with source ranges the host's filter; and what Envoy dials as itself
// is no pod's connection.
func (s *Splice) class(f *frontendpb.Frontend) frontendpb.Class {
	if f == nil || f.GetDirect() != nil || f.GetLimited() != nil || f.GetProtocol() != string(model.TCP) || !f.Addr().IsValid() ||
		f.GetPod().GetVerdict() != frontendpb.Verdict_FORWARD || slices.ContainsFunc(s.aliases, func(a envoy.Alias) bool { return a.Address == f.Addr() }) {
		return 0
	}
	if c := f.GetPod().GetClass(); c == frontendpb.Class_KEEP || c == frontendpb.Class_EXTERNAL {
		return c
	}
	return 0
}

// commitFrontends brings the map of frontends up to date.
func (s *Splice) commitFrontends() error {
	if !s.complete {
		return s.commitAllFrontends()
	}
	for name := range s.changed {
		f := s.wanted[name]
		if class := s.class(f); class != 0 {
			s.keys[name] = key(netip.AddrPortFrom(f.Addr(), uint16(f.GetPort())))
			if err := s.maps.frontends.Put(s.keys[name], uint32(class)); err != nil {
				s.complete = false
				return fmt.Errorf("frontend %s: %w", name, err)
			}
		} else if k, known := s.keys[name]; known {
			if err := s.maps.frontends.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
				s.complete = false
				return fmt.Errorf("remove frontend %s: %w", name, err)
			}
			delete(s.keys, name)
		}
		delete(s.changed, name)
	}
	return nil
}

// commitAllFrontends compares the map of frontends, which may be an earlier agent's, with what is wanted.
func (s *Splice) commitAllFrontends() error {
	classes := map[frontend]frontendpb.Class{}
	clear(s.keys)
	for name, f := range s.wanted {
		if class := s.class(f); class != 0 {
			s.keys[name] = key(netip.AddrPortFrom(f.Addr(), uint16(f.GetPort())))
			classes[s.keys[name]] = class
		}
	}
	var errs []error
	var stale []frontend
	var k frontend
	var class uint32
	for entries := s.maps.frontends.Iterate(); ; {
		if !entries.Next(&k, &class) {
			errs = append(errs, entries.Err())
			break
		}
		if classes[k] == 0 {
			stale = append(stale, k)
		}
	}
	for _, k := range stale {
		if err := s.maps.frontends.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			errs = append(errs, err)
		}
	}
	for k, class := range classes {
		if err := s.maps.frontends.Put(k, uint32(class)); err != nil {
			errs = append(errs, fmt.Errorf("%d frontends: %w", len(classes), err))
			break
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("the map of frontends: %w", err)
	}
	clear(s.changed)
	s.complete = true
	return nil
}

// commitInstances tells the programs the Envoys' veths, and which Envoy is the current one. An Envoy gets connections only if what it
// sends comes by the program at its veth.
func (s *Splice) commitInstances(want dataplane.Instances) error {
	var errs []error
	for id := range s.instances {
		if !slices.Contains(want.Live, id) {
			delete(s.instances, id)
			errs = append(errs, s.setVeths(id, false))
		}
	}
	for _, id := range want.Live {
		if s.instances[id] && s.inspected {
			continue
		}
		err := s.attachInstance(id)
		if err == nil {
			err = s.setVeths(id, true)
		}
		s.instances[id] = err == nil
		errs = append(errs, err)
	}
	current := want.Current
	if !s.instances[current] {
		current = 0
	}
	if err := s.maps.slots.Put(uint32(0), uint32(current)); err != nil {
		errs = append(errs, fmt.Errorf("the current Envoy: %w", err))
	}
	return errors.Join(errs...)
}

// setVeths tells the program at pods' links the veths of an Envoy, or that it is gone.
func (s *Splice) setVeths(id envoyns.ID, alive bool) error {
	var errs []error
	for _, class := range []frontendpb.Class{frontendpb.Class_KEEP, frontendpb.Class_EXTERNAL} {
		index := 0
		if alive {
			veth, err := net.InterfaceByName(envoyns.LinkName(id, class))
			if err != nil {
				return fmt.Errorf("instance %d of Envoy: %w", id, err)
			}
			index = veth.Index
		}
		errs = append(errs, s.maps.slots.Put(slot(id, class), uint32(index)))
	}
	return errors.Join(errs...)
}

func (s *Splice) attachInstance(id envoyns.ID) error {
	veth, err := net.InterfaceByName(envoyns.LinkName(id, frontendpb.Class_KEEP))
	if err != nil {
		return fmt.Errorf("instance %d of Envoy: %w", id, err)
	}
	p, err := load(keepName, keepProgram(s.maps, s.config.Mask, s.config.Mark(id, 0)))
	if err != nil {
		return err
	}
	defer p.Close()
	if err := attach(veth.Index, p); err != nil {
		return fmt.Errorf("%s: %w", veth.Name, err)
	}
	return nil
}

// commitLinks attaches the program to the links of pods that are new, and detaches it from those that are no longer a pod's.
func (s *Splice) commitLinks(links []Link) error {
	var errs []error
	if len(s.links) == 0 || !s.inspected {
		s.forgetLinks(links)
	}
	for index := range s.links {
		if !slices.ContainsFunc(links, func(l Link) bool { return l.Index == index }) {
			if err := s.maps.links.Delete(uint32(index)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
				errs = append(errs, err)
			}
			errs = append(errs, detach(index))
			delete(s.links, index)
		}
	}
	for _, l := range links {
		if s.links[l.Index] == l.Route && s.inspected {
			continue
		}
		err := s.maps.links.Put(uint32(l.Index), uint32(l.Route))
		if err == nil {
			err = attach(l.Index, s.program)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("link %d: %w", l.Index, err))
			delete(s.links, l.Index)
			continue
		}
		s.links[l.Index] = l.Route
	}
	return errors.Join(errs...)
}

// forgetLinks deletes from the map the links that are gone, which an earlier agent may have added.
func (s *Splice) forgetLinks(links []Link) {
	var index, route uint32
	var stale []uint32
	for entries := s.maps.links.Iterate(); entries.Next(&index, &route); {
		if !slices.ContainsFunc(links, func(l Link) bool { return uint32(l.Index) == index }) {
			stale = append(stale, index)
		}
	}
	for _, index := range stale {
		s.links[int(index)] = 0 // commitLinks detaches it.
	}
}
