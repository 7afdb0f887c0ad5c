package worker

import (
	"sync/atomic"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hsm"
)

// Sources of an operation, as they are written.
const (
	sourcePlaintext = 1 + iota
	sourceRandom
	sourceOpen
	sourceMask = 3
	flagReveal = 4
)

const (
	keySize = len(hierarchy.ObjectID{}) + len(hierarchy.CheckValue{}) + 1
	// opHead is an operation's ID, lane, flags and number of targets.
	opHead = 4 + hierarchy.IDSize + 1 + 1
)

// operationSize is how many bytes a valid operation takes in a frame.
func operationSize(op *hsm.Operation) int {
	n := opHead
	switch {
	case op.Open != nil:
		n += keySize + 2 + len(op.Open.AAD) + hsm.IVSize + 2 + len(op.Open.Ciphertext)
	default:
		n += 2 + len(op.Plaintext)
	}
	for i := range op.To {
		n += keySize + 2 + len(op.To[i].AAD)
	}
	return n
}

// appendOperation writes a valid operation under an ID of the daemon's choice.
func appendOperation(b []byte, id uint32, op *hsm.Operation) []byte {
	flags := byte(sourcePlaintext)
	switch {
	case op.Open != nil:
		flags = sourceOpen
	case op.Random != 0:
		flags = sourceRandom
	}
	if op.Reveal {
		flags |= flagReveal
	}
	b = le.AppendUint32(b, id)
	b = append(b, op.Lane.ID[:]...)
	b = append(b, flags, byte(len(op.To)))
	switch flags & sourceMask {
	case sourcePlaintext:
		b = appendShort(b, op.Plaintext)
	case sourceRandom:
		b = le.AppendUint16(b, uint16(op.Random))
	case sourceOpen:
		b = appendKey(b, op.Open.Key)
		b = appendShort(b, op.Open.AAD)
		b = append(b, op.Open.IV...)
		b = appendShort(b, op.Open.Ciphertext)
	}
	for i := range op.To {
		b = appendKey(b, op.To[i].Key)
		b = appendShort(b, op.To[i].AAD)
	}
	return b
}

func appendKey(b []byte, k hsm.KeyRef) []byte {
	b = append(b, k.ID[:]...)
	b = append(b, k.Check[:]...)
	return appendFlag(b, k.Bridge)
}

func (d *decoder) key() (k hsm.KeyRef) {
	copy(k.ID[:], d.take(len(k.ID)))
	copy(k.Check[:], d.take(len(k.Check)))
	k.Bridge = d.flag()
	return k
}

// A job is the operations of one frame on their way through a worker. Its memory is used again.
type job struct {
	frame    []byte // a copy: the operations point into it
	ops      []hsm.Operation
	ids      []uint32
	openings []hsm.Opening
	targets  []hsm.Target

	next     int          // operations that were begun
	late     []int        // of those, in order: they wait, and are answered apart
	answered atomic.Int32 // operations that were, and 1 when all have run
}

// parse takes the operations of a frame. Whether they are valid is for the token to say.
func (j *job) parse(frame []byte) error {
	j.frame = append(room(j.frame[:0], len(frame)), frame...)
	d := decoder{b: j.frame}
	for d.more() {
		if err := j.operation(&d); err != nil {
			return err
		}
	}
	return d.done()
}

func (j *job) operation(d *decoder) error {
	j.ids = append(j.ids, d.u32())
	j.ops = append(j.ops, hsm.Operation{})
	op := &j.ops[len(j.ops)-1]
	copy(op.Lane.ID[:], d.take(hierarchy.IDSize))
	flags, targets := d.u8(), int(d.u8())
	op.Reveal = flags&flagReveal != 0
	switch flags &^ flagReveal {
	case sourcePlaintext:
		op.Plaintext = d.short()
	case sourceRandom:
		op.Random = int(d.u16())
	case sourceOpen:
		o := hsm.Opening{Key: d.key(), AAD: d.short()}
		o.IV = d.take(hsm.IVSize)
		o.Ciphertext = d.short()
		// Earlier operations keep what they point to when this moves.
		j.openings = append(j.openings, o)
		op.Open = &j.openings[len(j.openings)-1]
	default:
		d.bad = true
	}
	first := len(j.targets)
	for range targets {
		if d.bad {
			break
		}
		j.targets = append(j.targets, hsm.Target{Key: d.key(), AAD: d.short()})
	}
	if targets > 0 {
		op.To = j.targets[first:len(j.targets):len(j.targets)]
	}
	if d.bad {
		return errGarbage
	}
	return nil
}

// wipe forgets the job, data keys above all.
func (j *job) wipe() {
	for i := range j.ops {
		clear(j.ops[i].Revealed)
	}
	clear(j.frame)
	clear(j.ops)
	clear(j.openings)
	clear(j.targets)
	j.frame, j.ops, j.ids, j.openings, j.targets = j.frame[:0], j.ops[:0], j.ids[:0], j.openings[:0], j.targets[:0]
	j.next = 0
	j.late = j.late[:0]
	j.answered.Store(0)
}

// resultSize is how many bytes the result of an operation takes at most in a frame.
func resultSize(op *hsm.Operation) int {
	if op.Err != nil {
		return 4 + 1 + 4 + 2 + textLimit
	}
	n := 4 + 1 + 2 + len(op.Revealed) + 1
	for i := range op.Sealed {
		n += hsm.IVSize + 2 + len(op.Sealed[i].Ciphertext)
	}
	return n
}

// appendResult writes how an operation ended.
func appendResult(b []byte, id uint32, op *hsm.Operation) []byte {
	b = le.AppendUint32(b, id)
	b = appendFlag(b, op.Err != nil)
	if op.Err != nil {
		return appendError(b, op.Err)
	}
	b = appendShort(b, op.Revealed)
	b = append(b, byte(len(op.Sealed)))
	for i := range op.Sealed {
		b = append(b, op.Sealed[i].IV...)
		b = appendShort(b, op.Sealed[i].Ciphertext)
	}
	return b
}

// A result is how an operation ended, in the memory of the frame.
type result struct {
	id       uint32
	err      error
	revealed []byte
	sealed   []byte // of count, as they are written
	count    int
}

// result takes one result.
func (d *decoder) result() (r result) {
	r.id = d.u32()
	if d.flag() {
		r.err = d.error()
		return r
	}
	r.revealed = d.short()
	r.count = int(d.u8())
	rest := d.b
	for range r.count {
		d.take(hsm.IVSize)
		d.short()
	}
	if d.bad {
		return result{}
	}
	r.sealed = rest[:len(rest)-len(d.b)]
	return r
}

// give hands a result to its operation, in memory of its own. It fails if the result is not one
// of this operation.
func (r *result) give(op *hsm.Operation) error {
	if r.err != nil {
		op.Err = r.err
		return nil
	}
	if r.count != len(op.To) || op.Reveal != (len(r.revealed) > 0) {
		return errGarbage
	}
	if r.count > 0 {
		sealed := make([]hsm.Sealed, r.count)
		d := decoder{b: append([]byte(nil), r.sealed...)}
		for i := range sealed {
			sealed[i] = hsm.Sealed{IV: d.take(hsm.IVSize), Ciphertext: d.short()}
		}
		op.Sealed = sealed
	}
	if op.Reveal {
		op.Revealed = append([]byte(nil), r.revealed...)
	}
	return nil
}
