package pkcs11

import (
	"github.com/miekg/pkcs11"
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
	CanaryID             = canaryID
	MayLogIn             = mayLogIn
	PINPath              = pinPath
	Failure              = failure
	SessionLost          = sessionLost
	Transient            = transient
	ModuleLost           = moduleLost
	CBCEncryptData       = cbcEncryptData
)

// Examine judges attributes as if they had been read from the token.
func Examine(read map[uint][]byte) (fault error, bridge, halfMade bool) {
	r := examine(1, read)
	return r.obj.Fault, r.obj.Bridge, r.halfMade()
}

// CopyCount is how many session copies there are.
func (t *Token) CopyCount() int { return int(t.copies.n.Load()) }
