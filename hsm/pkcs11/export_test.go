package pkcs11

import (
	"github.com/miekg/pkcs11"

	"github.com/kekd/kekd/hsm"
)

// What the tests look at from outside.

type Machine = machine

var NewMachine = newMachine
var LoadFunctions = loadFunctions

func (m *machine) Open(key pkcs11.ObjectHandle, iv, aad, ciphertext []byte) int {
	return m.open(key, iv, aad, ciphertext)
}
func (m *machine) Run(s pkcs11.SessionHandle) { m.run(s) }
func (m *machine) Reset()                     { m.reset() }
func (m *machine) Given(b []byte) int         { return m.given(b) }
func (m *machine) Out(i int) []byte           { return m.out(i) }
func (m *machine) RV(i int) pkcs11.Error      { code, _ := m.rv(i); return code }

var (
	KEKTemplate          = kekTemplate
	TwinTemplate         = twinTemplate
	CopyTemplate         = copyTemplate
	IntermediateTemplate = intermediateTemplate
	PairPublicTemplate   = pairPublicTemplate
	PairPrivateTemplate  = pairPrivateTemplate
	LatchTemplate        = latchTemplate
	SearchByID           = searchByID
	MarkTemplate         = markTemplate
	SearchMark           = searchMark
	CanaryID             = canaryID
	TrialID              = trialID
	MayLogIn             = mayLogIn
	Failure              = failure
	SessionLost          = sessionLost
	Transient            = transient
	ModuleLost           = moduleLost
	CBCEncryptData       = cbcEncryptData
)

// Examine judges attributes as if they had been read from the token.
func Examine(read map[uint][]byte) (bridge, halfMade bool, fault error) {
	r := examine(1, read)
	return r.obj.Bridge, r.halfMade(), r.obj.Fault
}

// CopyCount is how many session copies there are.
func (t *Token) CopyCount() int { return int(t.copies.n.Load()) }

// Queue is the queue with slots that do nothing.
type Queue struct{ q *queue }

func NewQueue(slots int) Queue {
	q := Queue{newQueue(slots)}
	q.q.busy.Add(1) // a slot that is never idle
	return q
}

// Push queues the operations of one call.
func (q Queue) Push(ops []hsm.Operation) bool {
	_, ok := q.q.push(&call{ops: ops}, ops, len(ops))
	return ok
}

// Take gives the operations of the next chunk; none if none wait.
func (q Queue) Take() (ops []*hsm.Operation) {
	pieces, _, ok := q.q.take(nil, nil)
	if !ok {
		q.q.wake()
	}
	for _, p := range pieces {
		ops = append(ops, &p.call.ops[p.i])
	}
	return ops
}

const (
	ChunkSize  = chunkSize
	QueueLimit = queueLimit
)
