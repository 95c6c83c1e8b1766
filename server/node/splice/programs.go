package splice

import (
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// Both programs are emitted as instructions rather than compiled from C: the build needs no clang, and the kernel no BTF.
//
// Their stacks, from the frame pointer R10. The flow's key ends with the frontend's.
const (
	keyPod          = -40 // 16 bytes; an IPv4 address is mapped into IPv6.
	keyPodPort      = -24 // 2 bytes.
	keyFrontend     = -22 // 16 bytes.
	keyFrontendPort = -6  // 2 bytes.
	index           = -44 // 4 bytes: the key of links or slots.
	header          = -64 // 20 bytes: the packet's IPv4 or TCP header.
	place           = -88 // 20 bytes: the value of flows, see type flow.
	placeLink       = place + 4
	placeFrame      = place + 8
	route           = -152 // 64 bytes: struct bpf_fib_lookup.
)

// The kernel's numbers: offsets in struct __sk_buff and struct bpf_fib_lookup, and flags.
const (
	ctxMark, ctxProtocol, ctxVLAN, ctxIfindex = 8, 16, 20, 40

	routeLength, routeIfindex, routeSource, routeDestination = 64, 8, 16, 32
	skipNeighbour                                            = 1 << 2 // BPF_FIB_LOOKUP_SKIP_NEIGH

	familyIPv4, familyIPv6 = 2, 10
	tcp                    = 6
	toIngress              = 1 // BPF_F_INGRESS
	toThisHost             = 0 // PACKET_HOST
	nextProgram            = -1
	frameLength            = 14
)

// emitter collects the instructions of a program. R6 is the packet, R8 its family or, later, a link; R7 and R9 are free.
type emitter struct{ asm.Instructions }

func (e *emitter) emit(i ...asm.Instruction) { e.Instructions = append(e.Instructions, i...) }

// label names the place of the next instruction.
func (e *emitter) label(name string) { e.emit(asm.Mov.Imm(asm.R0, 0).WithSymbol(name)) }

// call calls a helper whose arguments from R2 on are set, with the packet as the first.
func (e *emitter) call(f asm.BuiltinFunc) { e.emit(asm.Mov.Reg(asm.R1, asm.R6), f.Call()) }

// stack sets a register to an address on the stack.
func (e *emitter) stack(r asm.Register, offset int32) {
	e.emit(asm.Mov.Reg(r, asm.R10), asm.Add.Imm(r, offset))
}

// load copies bytes of the packet, from the offset in R2, to the stack; a packet that is shorter is passed on.
func (e *emitter) load(to, length int32) {
	e.stack(asm.R3, to)
	e.emit(asm.Mov.Imm(asm.R4, length))
	e.call(asm.FnSkbLoadBytes)
	e.emit(asm.JNE.Imm(asm.R0, 0, "pass"))
}

// find sets R0 to the address of a key's value, or jumps.
func (e *emitter) find(m *ebpf.Map, key int32, missing string) {
	e.emit(asm.LoadMapPtr(asm.R1, m.FD()))
	e.stack(asm.R2, key)
	e.emit(asm.FnMapLookupElem.Call(), asm.JEq.Imm(asm.R0, 0, missing))
}

// store stores a value from the stack; a packet for which there is no room is passed on.
func (e *emitter) store(m *ebpf.Map, key, value int32) {
	e.emit(asm.LoadMapPtr(asm.R1, m.FD()))
	e.stack(asm.R2, key)
	e.stack(asm.R3, value)
	e.emit(asm.Mov.Imm(asm.R4, 0), asm.FnMapUpdateElem.Call(), asm.JNE.Imm(asm.R0, 0, "pass"))
}

// move copies bytes from one place on the stack to another, two at a time: not all of the key's fields are aligned to words.
func (e *emitter) move(to, from, n int16) {
	for i := int16(0); i < n; i += 2 {
		e.emit(asm.LoadMem(asm.R1, asm.R10, from+i, asm.Half), asm.StoreMem(asm.R10, to+i, asm.R1, asm.Half))
	}
}

// clear sets bytes of the stack to zero; n is a multiple of 4.
func (e *emitter) clear(from, n int16) {
	for off := from; off < from+n; off += 4 {
		e.emit(asm.StoreImm(asm.R10, off, 0, asm.Word))
	}
}

// ends are the offsets in the key of the packet's source and destination, and of their ports.
type ends struct{ source, destination, sourcePort, destinationPort int16 }

var (
	fromPod      = ends{keyPod, keyFrontend, keyPodPort, keyFrontendPort}
	fromFrontend = ends{keyFrontend, keyPod, keyFrontendPort, keyPodPort}
)

// parse fills the key and the TCP header's first 14 bytes; everything but an unfragmented packet of TCP is passed on. R8 is the family.
func (e *emitter) parse(to ends) {
	be := func(v uint16) int32 { return int32(v<<8 | v>>8) }
	e.emit(asm.Mov.Reg(asm.R6, asm.R1),
		asm.LoadMem(asm.R1, asm.R6, ctxVLAN, asm.Word), asm.JNE.Imm(asm.R1, 0, "pass"))
	e.clear(keyPod, 36)
	e.emit(asm.LoadMem(asm.R1, asm.R6, ctxProtocol, asm.Word),
		asm.JEq.Imm(asm.R1, be(0x86dd), "ipv6"), asm.JNE.Imm(asm.R1, be(0x0800), "pass"))

	e.emit(asm.Mov.Imm(asm.R2, frameLength))
	e.load(header, 20)
	e.emit(
		asm.LoadMem(asm.R1, asm.R10, header+9, asm.Byte), asm.JNE.Imm(asm.R1, tcp, "pass"),
		asm.LoadMem(asm.R1, asm.R10, header+6, asm.Half), asm.And.Imm(asm.R1, be(0x3fff)), asm.JNE.Imm(asm.R1, 0, "pass"), // A fragment.
		asm.LoadMem(asm.R7, asm.R10, header, asm.Byte), asm.And.Imm(asm.R7, 0xf), asm.LSh.Imm(asm.R7, 2), asm.Add.Imm(asm.R7, frameLength),
		asm.Mov.Imm(asm.R8, familyIPv4))
	for i, at := range []int16{to.source, to.destination} {
		e.emit(asm.StoreImm(asm.R10, at+10, 0xffff, asm.Half))
		e.move(at+12, header+12+4*int16(i), 4)
	}
	e.emit(asm.Ja.Label("tcp"))

	e.label("ipv6")
	e.emit(asm.Mov.Imm(asm.R2, frameLength+6))
	e.load(header, 1)
	e.emit(asm.LoadMem(asm.R1, asm.R10, header, asm.Byte), asm.JNE.Imm(asm.R1, tcp, "pass"), asm.Mov.Imm(asm.R2, frameLength+8))
	e.load(int32(to.source), 16)
	e.emit(asm.Mov.Imm(asm.R2, frameLength+24))
	e.load(int32(to.destination), 16)
	e.emit(asm.Mov.Imm(asm.R7, frameLength+40), asm.Mov.Imm(asm.R8, familyIPv6))

	e.label("tcp")
	e.emit(asm.Mov.Reg(asm.R2, asm.R7))
	e.load(header, 14)
	e.emit(asm.LoadMem(asm.R1, asm.R10, header, asm.Half), asm.StoreMem(asm.R10, to.sourcePort, asm.R1, asm.Half),
		asm.LoadMem(asm.R1, asm.R10, header+2, asm.Half), asm.StoreMem(asm.R10, to.destinationPort, asm.R1, asm.Half))
}

// pass ends a program: the packet goes to the next program, or into the host's stack.
func (e *emitter) pass() {
	e.label("pass")
	e.emit(asm.Mov.Imm(asm.R0, nextProgram), asm.Return())
}

// podProgram runs at the ingress of a pod's link, for what the pod sends. A connection's first packet to a frontend goes to the
// current Envoy, if the host would route the pod's address back by that link; what follows goes where the first went.
func podProgram(m maps, mask uint32) asm.Instructions {
	e := &emitter{}
	e.parse(fromPod)
	// What the other program has put here is not looked up again.
	e.emit(asm.LoadMem(asm.R1, asm.R6, ctxMark, asm.Word), asm.And.Imm(asm.R1, int32(mask)), asm.JNE.Imm(asm.R1, 0, "pass"),
		asm.LoadMem(asm.R1, asm.R6, ctxIfindex, asm.Word), asm.StoreMem(asm.R10, index, asm.R1, asm.Word),
		asm.LoadMem(asm.R1, asm.R10, header+13, asm.Byte), asm.And.Imm(asm.R1, 0x12), asm.JEq.Imm(asm.R1, 0x02, "first")) // SYN, no ACK.

	e.find(m.flows, keyPod, "pass")
	e.emit(asm.LoadMem(asm.R1, asm.R0, 4, asm.Word), asm.LoadMem(asm.R2, asm.R10, index, asm.Word), asm.JNE.Reg(asm.R1, asm.R2, "pass"),
		asm.LoadMem(asm.R1, asm.R0, 0, asm.Word), asm.StoreMem(asm.R10, index, asm.R1, asm.Word))
	e.find(m.slots, index, "pass")
	e.emit(asm.LoadMem(asm.R7, asm.R0, 0, asm.Word), asm.Ja.Label("to-envoy"))

	e.label("first")
	e.find(m.frontends, keyFrontend, "pass")
	e.emit(asm.LoadMem(asm.R9, asm.R0, 0, asm.Word)) // The class.
	e.routedBack(m)
	e.emit(asm.LoadMem(asm.R1, asm.R6, ctxIfindex, asm.Word), asm.StoreMem(asm.R10, placeLink, asm.R1, asm.Word),
		asm.StoreImm(asm.R10, index, 0, asm.Word))
	e.find(m.slots, index, "pass")
	e.emit(asm.LoadMem(asm.R1, asm.R0, 0, asm.Word), asm.JEq.Imm(asm.R1, 0, "pass"), // No Envoy is current.
		asm.LSh.Imm(asm.R1, 2), asm.Or.Reg(asm.R1, asm.R9), asm.StoreMem(asm.R10, index, asm.R1, asm.Word), asm.StoreMem(asm.R10, place, asm.R1, asm.Word))
	e.find(m.slots, index, "pass")
	e.emit(asm.LoadMem(asm.R7, asm.R0, 0, asm.Word), asm.JEq.Imm(asm.R7, 0, "pass"), asm.Mov.Imm(asm.R2, 0))
	e.load(placeFrame, 12)
	e.store(m.flows, keyPod, place)
	e.store(m.pods, keyPod, placeLink)

	e.label("to-envoy")
	e.emit(asm.JEq.Imm(asm.R7, 0, "pass"), asm.Mov.Imm(asm.R2, toThisHost)) // A bridge's port gets frames to the bridge's address.
	e.call(asm.FnSkbChangeType)
	e.emit(asm.Mov.Reg(asm.R1, asm.R7), asm.Mov.Imm(asm.R2, 0), asm.FnRedirectPeer.Call(), asm.Return())
	e.pass()
	return e.Instructions
}

// routedBack passes the packet on unless its link is a pod's, and the host routes its source back by that link: else the sender
// uses another's address.
func (e *emitter) routedBack(m maps) {
	e.find(m.links, index, "pass")
	e.emit(asm.LoadMem(asm.R7, asm.R0, 0, asm.Word))
	e.clear(route, routeLength)
	e.emit(asm.StoreMem(asm.R10, route, asm.R8, asm.Byte), asm.StoreMem(asm.R10, route+routeIfindex, asm.R7, asm.Word), asm.JEq.Imm(asm.R8, familyIPv6, "route6"))
	e.move(route+routeSource, keyFrontend+12, 4)
	e.move(route+routeDestination, keyPod+12, 4)
	e.emit(asm.Ja.Label("routed"))
	e.label("route6")
	e.move(route+routeSource, keyFrontend, 16)
	e.move(route+routeDestination, keyPod, 16)
	e.label("routed")
	e.stack(asm.R2, route)
	e.emit(asm.Mov.Imm(asm.R3, routeLength), asm.Mov.Imm(asm.R4, skipNeighbour))
	e.call(asm.FnFibLookup)
	e.emit(asm.JNE.Imm(asm.R0, 0, "pass"), asm.LoadMem(asm.R1, asm.R10, route+routeIfindex, asm.Word), asm.JNE.Reg(asm.R1, asm.R7, "pass"))
}

// keepProgram runs at the ingress of an Envoy's veth of class keep, for what that Envoy sends under others' addresses. Replies of a
// frontend leave by the pod's link; what it opens under a pod's address comes in by the pod's link, in the pod's own frame.
func keepProgram(m maps, mask, mark uint32) asm.Instructions {
	e := &emitter{}
	e.parse(fromFrontend)
	e.find(m.flows, keyPod, "opened")
	e.emit(asm.Mov.Reg(asm.R7, asm.R0), asm.Add.Imm(asm.R7, 4), asm.LoadMem(asm.R8, asm.R7, 0, asm.Word), asm.StoreMem(asm.R10, index, asm.R8, asm.Word))
	e.find(m.links, index, "pass")
	e.frame(0, 6+4, 6)
	e.frame(6, 4, 6)
	e.emit(asm.Mov.Reg(asm.R1, asm.R8), asm.Mov.Imm(asm.R2, 0), asm.FnRedirect.Call(), asm.Return())

	e.label("opened")
	e.find(m.pods, keyFrontend, "pass")
	e.emit(asm.Mov.Reg(asm.R7, asm.R0), asm.LoadMem(asm.R8, asm.R7, 0, asm.Word), asm.StoreMem(asm.R10, index, asm.R8, asm.Word))
	e.find(m.links, index, "pass")
	e.emit(asm.LoadMem(asm.R1, asm.R6, ctxMark, asm.Word), asm.And.Imm(asm.R1, int32(^mask)), asm.Or.Imm(asm.R1, int32(mark)),
		asm.StoreMem(asm.R6, ctxMark, asm.R1, asm.Word))
	e.frame(0, 4, 12)
	e.emit(asm.Mov.Reg(asm.R1, asm.R8), asm.Mov.Imm(asm.R2, toIngress), asm.FnRedirect.Call(), asm.Return())
	e.pass()
	return e.Instructions
}

// frame writes bytes of the value at R7 into the packet's frame header.
func (e *emitter) frame(at, from, length int32) {
	e.emit(asm.Mov.Imm(asm.R2, at), asm.Mov.Reg(asm.R3, asm.R7), asm.Add.Imm(asm.R3, from), asm.Mov.Imm(asm.R4, length), asm.Mov.Imm(asm.R5, 0))
	e.call(asm.FnSkbStoreBytes)
}

// load loads a program into the kernel.
func load(name string, code asm.Instructions) (*ebpf.Program, error) {
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: name, Type: ebpf.SchedCLS, Instructions: code, License: "GPL"})
	if err != nil {
		return nil, fmt.Errorf("load the program %s: %w", name, err)
	}
	return p, nil
}
