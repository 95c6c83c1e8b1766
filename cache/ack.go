package cache

import (
	"slices"
	"strings"
)

// maxDetail is how much is kept of the error message of a NACK, in bytes.
const maxDetail = 2048

// verdict is a request's ACK or NACK of an earlier response. The zero value is neither.
type verdict struct {
	acked, nacked bool
	detail        string
	since         uint64 // The first publish that what was acknowledged had something of.
	applied       uint64
}

// report calls the observer.
func (v verdict) report(o Observer, node, typeURL string) {
	switch {
	case v.acked:
		o.Acked(node, typeURL, v.since, v.applied)
	case v.nacked:
		o.Nacked(node, typeURL, v.detail)
	}
}

// acknowledge applies the ACK or NACK that a request holds for the response with its nonce.
//
// A rejected response is not sent again: the client would reject it again. What was in it counts as lacking until the
// client has accepted another content of the names, or their removal.
func (t *subscription) acknowledge(nonce string, rejects bool, detail string) verdict {
	if nonce == "" {
		return verdict{}
	}
	i := slices.IndexFunc(t.inFlight, func(r *response) bool { return r.nonce() == nonce })
	if i < 0 {
		return verdict{}
	}
	r := t.inFlight[i]
	t.inFlight = slices.Delete(t.inFlight, 0, i+1) // Clients answer in order.
	if !rejects {
		t.accept(r)
		return verdict{acked: true, since: r.since}
	}
	t.nack = excerpt(detail)
	if t.rejected == nil {
		t.rejected = map[string]uint64{}
	}
	for _, name := range r.rejected(t.typeURL, detail) {
		if _, ok := t.rejected[name]; !ok {
			t.rejected[name] = r.since
		}
	}
	return verdict{nacked: true, detail: t.nack}
}

// excerpt returns what is kept of a detail.
func excerpt(detail string) string {
	if len(detail) > maxDetail {
		detail = strings.Clone(detail[:maxDetail])
	}
	return strings.ToValidUTF8(detail, "")
}

// accept records that the client has accepted a response.
func (t *subscription) accept(r *response) {
	if !t.delta() && fullState(t.typeURL) {
		clear(t.rejected) // What is not in the response is removed.
	}
	if len(t.rejected) > 0 {
		delete(t.rejected, "")
		r.each(func(name string) { delete(t.rejected, name) })
	}
	if len(t.rejected) == 0 {
		t.nack = ""
	}
}

// resend has everything sent again when go-control-plane's SotW server has dropped a response: it does so when a
// request of the type arrives before it gets round to sending.
func (t *subscription) resend() {
	i := slices.IndexFunc(t.inFlight, func(r *response) bool { return r.message == nil })
	if i < 0 {
		return
	}
	if since := t.inFlight[i].since; t.since == 0 || since < t.since {
		t.since = since
	}
	t.inFlight = t.inFlight[:i]
	t.all, t.answer = true, true
}

// applied returns the highest publish up to which the client is known to have everything; seq is the last one.
func (t *subscription) applied(seq uint64) uint64 {
	lacks := seq + 1
	if t.since > 0 {
		lacks = min(lacks, t.since)
	}
	for _, r := range t.inFlight {
		lacks = min(lacks, r.since)
	}
	for _, since := range t.rejected {
		lacks = min(lacks, since)
	}
	return lacks - 1
}

// holds reports whether the client is known to have the present content of a name that exists.
func (t *subscription) holds(name string) bool {
	if !t.attached || !t.follows(name) || t.all {
		return false
	}
	for _, lacking := range []map[string]string{t.changed, t.removed} {
		if _, ok := lacking[name]; ok {
			return false
		}
	}
	if _, ok := t.rejected[name]; ok {
		return false
	}
	return !slices.ContainsFunc(t.inFlight, func(r *response) bool { return r.mentions(name) })
}
