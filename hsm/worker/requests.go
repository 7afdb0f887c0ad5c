package worker

import (
	"crypto"
	"crypto/x509"
	"fmt"
	"slices"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hsm"
)

type verb byte

// What a worker is asked, besides operations. Those from verbList on are the manager's, and are
// run in the order in which they were sent, except for marks.
const (
	verbHealthy verb = 1 + iota
	verbForget
	verbSign
	verbList
	verbInfo
	verbGenerate
	verbSetUsable
	verbDestroy
	verbExamine
	verbMark
	verbRaiseMark
	verbBegin
	verbDerive
	verbEnd
	verbs
)

func (v verb) managers() bool { return v >= verbList }

func (v verb) marks() bool { return v == verbMark || v == verbRaiseMark }

// A request is one thing that a worker is asked. Each verb uses the fields that it needs.
type request struct {
	id      uint32
	verb    verb
	timeout time.Duration // what is left until the caller's deadline; 0: none

	object hierarchy.ObjectID
	label  string
	usable bool
	keys   []hierarchy.ObjectID // to forget
	hash   crypto.Hash
	digest []byte
	pair   uint32 // the request that began the agreement
	peer   []byte
	kdf    hsm.KDF
	info   []byte
	owner  hsm.MarkOwner
	mark   hsm.Mark
}

// Bounds of what a request carries.
const (
	forgetLimit = 1 << 12   // keys in one request
	infoLimit   = 1<<16 - 1 // bytes; the daemon's has some hundred
)

func appendRequest(b []byte, r *request) []byte {
	b = le.AppendUint32(b, r.id)
	b = append(b, byte(r.verb))
	b = le.AppendUint64(b, uint64(r.timeout))
	switch r.verb {
	case verbForget:
		b = le.AppendUint32(b, uint32(len(r.keys)))
		for i := range r.keys {
			b = append(b, r.keys[i][:]...)
		}
	case verbSign:
		b = append(b, byte(r.hash))
		b = appendShort(b, r.digest)
	case verbGenerate:
		b = append(b, r.object[:]...)
		b = appendText(b, r.label)
	case verbSetUsable:
		b = append(b, r.object[:]...)
		b = appendFlag(b, r.usable)
	case verbDestroy:
		b = append(b, r.object[:]...)
	case verbMark:
		b = appendOwner(b, r.owner)
	case verbRaiseMark:
		b = appendMark(appendOwner(b, r.owner), r.mark)
	case verbDerive:
		b = le.AppendUint32(b, r.pair)
		b = append(b, r.object[:]...)
		b = appendText(b, r.label)
		b = appendText(b, string(r.kdf))
		b = appendShort(b, r.peer)
		b = appendShort(b, r.info)
	case verbEnd:
		b = le.AppendUint32(b, r.pair)
	}
	return b
}

// parseRequest takes a request. What it gives does not point into the frame.
func parseRequest(frame []byte) (*request, error) {
	d := decoder{b: frame}
	r := &request{id: d.u32(), verb: verb(d.u8()), timeout: time.Duration(d.u64())}
	switch r.verb {
	case verbForget:
		n := int(d.u32())
		if n > forgetLimit {
			return nil, errGarbage
		}
		for range n {
			r.keys = append(r.keys, d.object())
		}
	case verbSign:
		r.hash, r.digest = crypto.Hash(d.u8()), slices.Clone(d.short())
	case verbGenerate:
		r.object, r.label = d.object(), d.text()
	case verbSetUsable:
		r.object, r.usable = d.object(), d.flag()
	case verbDestroy:
		r.object = d.object()
	case verbMark:
		r.owner = d.owner()
	case verbRaiseMark:
		r.owner, r.mark = d.owner(), d.mark()
	case verbDerive:
		r.pair, r.object, r.label, r.kdf = d.u32(), d.object(), d.text(), hsm.KDF(d.text())
		r.peer, r.info = slices.Clone(d.short()), slices.Clone(d.short())
	case verbEnd:
		r.pair = d.u32()
	}
	if r.verb == 0 || r.verb >= verbs || r.timeout < 0 {
		return nil, errGarbage
	}
	return r, d.done()
}

func (d *decoder) object() (id hierarchy.ObjectID) {
	copy(id[:], d.take(len(id)))
	return id
}

func appendOwner(b []byte, o hsm.MarkOwner) []byte {
	return append(append(b, o.Cluster.ID[:]...), o.Node.ID[:]...)
}

func (d *decoder) owner() (o hsm.MarkOwner) {
	copy(o.Cluster.ID[:], d.take(len(o.Cluster.ID)))
	copy(o.Node.ID[:], d.take(len(o.Node.ID)))
	return o
}

func appendMark(b []byte, m hsm.Mark) []byte {
	for _, n := range []uint64{m.Term, m.LastTerm, m.LastIndex} {
		b = le.AppendUint64(b, n)
	}
	return b
}

func (d *decoder) mark() hsm.Mark {
	return hsm.Mark{Term: d.u64(), LastTerm: d.u64(), LastIndex: d.u64()}
}

// An answer is what a worker gives to a request, or a part of it: a listing comes in several.
type answer struct {
	id   uint32
	more bool // another part follows
	err  error
	body []byte // what the verb gives
}

func appendAnswer(b []byte, a *answer) []byte {
	b = le.AppendUint32(b, a.id)
	b = appendFlag(b, a.more)
	b = appendFlag(b, a.err != nil)
	if a.err != nil {
		return appendError(b, a.err)
	}
	return append(b, a.body...)
}

// parseAnswer takes an answer. Its body points into the frame.
func parseAnswer(frame []byte) (a answer, err error) {
	d := decoder{b: frame}
	a.id, a.more = d.u32(), d.flag()
	if d.flag() {
		a.err = d.error()
		if a.more {
			return a, errGarbage
		}
		return a, d.done()
	}
	if d.bad {
		return a, errGarbage
	}
	a.body = d.b
	return a, nil
}

func appendObject(b []byte, o *hsm.Object) []byte {
	b = append(b, o.ID[:]...)
	b = appendText(b, string(o.RawID)) // cut, as the label is: it stays another than ours
	b = appendText(b, o.Label)
	b = append(b, o.Check[:]...)
	b = appendFlag(b, o.Usable)
	b = appendFlag(b, o.Bridge)
	b = appendFlag(b, o.Fault != nil)
	if o.Fault != nil {
		b = appendError(b, o.Fault)
	}
	return b
}

func (d *decoder) keyObject() (o hsm.Object) {
	o.ID = d.object()
	o.RawID = slices.Clone(d.short())
	o.Label = d.text()
	copy(o.Check[:], d.take(len(o.Check)))
	o.Usable, o.Bridge = d.flag(), d.flag()
	if d.flag() {
		o.Fault = d.error()
	}
	return o
}

func appendInfo(b []byte, i *hsm.Info) []byte {
	for _, s := range []string{i.Label, i.Manufacturer, i.Model, i.Serial, i.Firmware} {
		b = appendText(b, s)
	}
	b = append(b, byte(len(i.KDFs)))
	for _, k := range i.KDFs {
		b = appendText(b, string(k))
	}
	b = appendFlag(b, i.CanCopy)
	b = appendFlag(b, i.CanLatch)
	for _, n := range []uint64{i.FreeBytes, i.FreeObjects, i.MaxObjects, i.Others} {
		b = le.AppendUint64(b, n)
	}
	return b
}

func (d *decoder) info() (i hsm.Info) {
	for _, s := range []*string{&i.Label, &i.Manufacturer, &i.Model, &i.Serial, &i.Firmware} {
		*s = d.text()
	}
	i.KDFs = []hsm.KDF{}
	for range d.u8() {
		i.KDFs = append(i.KDFs, hsm.KDF(d.text()))
	}
	i.CanCopy, i.CanLatch = d.flag(), d.flag()
	for _, n := range []*uint64{&i.FreeBytes, &i.FreeObjects, &i.MaxObjects, &i.Others} {
		*n = d.u64()
	}
	return i
}

// checksLimit bounds the checks of an examination: there are about ten.
const checksLimit = 64

func appendChecks(b []byte, checks []hsm.Check) []byte {
	for _, c := range checks {
		for _, s := range []string{c.Name, string(c.Verdict), c.Meaning, c.Action} {
			b = appendText(b, s)
		}
	}
	return b
}

func (d *decoder) checks() (checks []hsm.Check) {
	for d.more() && len(checks) < checksLimit {
		c := hsm.Check{Name: d.text(), Verdict: hsm.Verdict(d.text()), Meaning: d.text(), Action: d.text()}
		if c.Verdict != hsm.OK && c.Verdict != hsm.Degraded && c.Verdict != hsm.Missing {
			d.bad = true
		}
		checks = append(checks, c)
	}
	return checks
}

// A hello is the first thing that a worker hears.
type hello struct{ role Role }

func appendHello(b []byte, h hello) []byte { return append(b, protocolVersion, byte(h.role)) }

func parseHello(frame []byte) (h hello, err error) {
	d := decoder{b: frame}
	version := d.u8()
	h.role = Role(d.u8())
	if err := d.done(); err != nil || h.role != RoleManager && h.role != RoleServer {
		return h, errGarbage
	}
	if version != protocolVersion {
		return h, fmt.Errorf("the daemon speaks version %d of the worker protocol, this worker %d", version, protocolVersion)
	}
	return h, nil
}

// A ready is the first thing that a worker says, once its token is open.
type ready struct {
	parallel int
	public   crypto.PublicKey // of the signing identity; nil: there is none
}

func appendReady(b []byte, r ready) ([]byte, error) {
	b = le.AppendUint16(b, uint16(min(max(r.parallel, 1), parallelLimit)))
	if r.public == nil {
		return appendShort(b, nil), nil
	}
	der, err := x509.MarshalPKIXPublicKey(r.public)
	if err != nil {
		return b, fmt.Errorf("the identity's public key: %w", err)
	}
	return appendShort(b, der), nil
}

func parseReady(frame []byte) (r ready, err error) {
	d := decoder{b: frame}
	r.parallel = int(d.u16())
	der := d.short()
	if err := d.done(); err != nil || r.parallel < 1 || r.parallel > parallelLimit {
		return r, errGarbage
	}
	if len(der) > 0 {
		r.public, err = x509.ParsePKIXPublicKey(der)
	}
	return r, err
}
