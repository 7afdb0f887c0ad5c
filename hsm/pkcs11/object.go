package pkcs11

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"unsafe"

	"github.com/miekg/pkcs11"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hsm"
)

// record is a key object as the token describes it, under one of its handles.
type record struct {
	handle   pkcs11.ObjectHandle
	obj      hsm.Object
	isKey    bool // a secret key
	hasCheck bool // the token gives a check value

	halfLatched bool // CKA_ENCRYPT and CKA_DECRYPT differ: a change of the latch did not finish
}

// readAttributes are those that are read back of a key object, before any use.
var readAttributes = []uint{
	pkcs11.CKA_CLASS, pkcs11.CKA_ID, pkcs11.CKA_LABEL, pkcs11.CKA_CHECK_VALUE, pkcs11.CKA_KEY_TYPE, pkcs11.CKA_VALUE_LEN,
	pkcs11.CKA_ENCRYPT, pkcs11.CKA_DECRYPT, pkcs11.CKA_LOCAL,
	pkcs11.CKA_PRIVATE, pkcs11.CKA_SENSITIVE, pkcs11.CKA_ALWAYS_SENSITIVE, pkcs11.CKA_NEVER_EXTRACTABLE,
	pkcs11.CKA_EXTRACTABLE, pkcs11.CKA_WRAP, pkcs11.CKA_UNWRAP, pkcs11.CKA_DERIVE, pkcs11.CKA_SIGN, pkcs11.CKA_VERIFY,
}

// mustBe is what holds for every KEK and bridge, whether token object or session copy.
var mustBe = []struct {
	typ   uint
	name  string
	value bool
}{
	{pkcs11.CKA_PRIVATE, "CKA_PRIVATE", true},
	{pkcs11.CKA_SENSITIVE, "CKA_SENSITIVE", true},
	{pkcs11.CKA_ALWAYS_SENSITIVE, "CKA_ALWAYS_SENSITIVE", true},
	{pkcs11.CKA_NEVER_EXTRACTABLE, "CKA_NEVER_EXTRACTABLE", true},
	{pkcs11.CKA_EXTRACTABLE, "CKA_EXTRACTABLE", false},
	{pkcs11.CKA_WRAP, "CKA_WRAP", false},
	{pkcs11.CKA_UNWRAP, "CKA_UNWRAP", false},
	{pkcs11.CKA_DERIVE, "CKA_DERIVE", false},
	{pkcs11.CKA_SIGN, "CKA_SIGN", false},
	{pkcs11.CKA_VERIFY, "CKA_VERIFY", false},
}

// examine judges what was read. What is wrong with the object is in its Fault.
//
// The role of a key cannot be told from its ID, which is a hash. What a bridge is told by is
// CKA_LOCAL 0 with a check value: SoftHSM sets the value, the check value and CKA_LOCAL in one
// transaction, so a key that it left half-made has neither. An imported key has CKA_LOCAL 0,
// too, but not CKA_ALWAYS_SENSITIVE. Who uses a key says which of the two it must be.
func examine(handle pkcs11.ObjectHandle, read map[uint][]byte) record {
	r := record{handle: handle}
	class, _ := ulong(read[pkcs11.CKA_CLASS])
	r.isKey = read[pkcs11.CKA_CLASS] != nil && class == pkcs11.CKO_SECRET_KEY
	r.obj.RawID = read[pkcs11.CKA_ID]
	r.obj.Label = string(read[pkcs11.CKA_LABEL])
	r.obj.Usable = isTrue(read[pkcs11.CKA_ENCRYPT]) && isTrue(read[pkcs11.CKA_DECRYPT])
	r.halfLatched = isTrue(read[pkcs11.CKA_ENCRYPT]) != isTrue(read[pkcs11.CKA_DECRYPT])
	r.obj.Bridge = !isTrue(read[pkcs11.CKA_LOCAL])
	r.hasCheck = len(read[pkcs11.CKA_CHECK_VALUE]) == len(r.obj.Check)
	if r.hasCheck {
		r.obj.Check = hierarchy.CheckValue(read[pkcs11.CKA_CHECK_VALUE])
	}
	if len(r.obj.RawID) == len(r.obj.ID) {
		r.obj.ID = hierarchy.ObjectID(r.obj.RawID)
	}
	r.obj.Fault = fault(r, read)
	return r
}

func fault(r record, read map[uint][]byte) error {
	refuse := func(format string, args ...any) error {
		return fmt.Errorf("%w: %s", hsm.ErrKeyRefused, fmt.Sprintf(format, args...))
	}
	if len(r.obj.RawID) != len(r.obj.ID) {
		return refuse("foreign: its CKA_ID has %d bytes", len(r.obj.RawID))
	}
	if r.halfMade() {
		return refuse("half-made: CKA_LOCAL is 0 and it has no check value")
	}
	if t, ok := ulong(read[pkcs11.CKA_KEY_TYPE]); !ok || t != pkcs11.CKK_AES {
		return refuse("CKA_KEY_TYPE is not AES")
	}
	if n, ok := ulong(read[pkcs11.CKA_VALUE_LEN]); !ok || n != keySize {
		return refuse("CKA_VALUE_LEN is not %d", keySize)
	}
	for _, m := range mustBe {
		if v, ok := read[m.typ]; !ok || len(v) != 1 {
			return refuse("%s cannot be read", m.name)
		} else if isTrue(v) != m.value {
			return refuse("%s is %t", m.name, !m.value)
		}
	}
	return nil
}

// halfMade tells what a crash during generation leaves: it holds no key, and using it can
// crash the module.
func (r record) halfMade() bool { return r.obj.Bridge && !r.hasCheck }

func isTrue(v []byte) bool { return bytes.Equal(v, []byte{1}) }

func ulong(v []byte) (uint, bool) {
	if len(v) != int(unsafe.Sizeof(uint(0))) {
		return 0, false
	}
	return uint(binary.NativeEndian.Uint64(v)), true
}

// read reads a key object back and judges it. Only a failure of the token is an error.
func (m *module) read(session pkcs11.SessionHandle, handle pkcs11.ObjectHandle) (record, error) {
	if read, ok := m.fns.readObject(session, handle, readAttributes); ok {
		return examine(handle, read), nil
	}
	// A foreign or broken object lacks some, and the call then gives none of them.
	read := make(map[uint][]byte, len(readAttributes))
	for _, typ := range readAttributes {
		got, err := m.ctx.GetAttributeValue(session, handle, attributes{attr(typ, nil)})
		var code pkcs11.Error
		switch {
		case err == nil:
			read[typ] = got[0].Value
		case errors.As(err, &code) && (code == pkcs11.CKR_ATTRIBUTE_TYPE_INVALID || code == pkcs11.CKR_ATTRIBUTE_SENSITIVE):
		default:
			return record{}, failure("read a key object's attributes", err)
		}
	}
	return examine(handle, read), nil
}

// search finds handles. The caller holds m.changes.
func (m *module) search(session pkcs11.SessionHandle, template attributes) ([]pkcs11.ObjectHandle, error) {
	if err := m.ctx.FindObjectsInit(session, template); err != nil {
		return nil, failure("search the token", err)
	}
	var all []pkcs11.ObjectHandle
	for {
		found, _, err := m.ctx.FindObjects(session, 512)
		if err != nil {
			m.ctx.FindObjectsFinal(session)
			return nil, failure("search the token", err)
		}
		if len(found) == 0 {
			break
		}
		all = append(all, found...)
	}
	if err := m.ctx.FindObjectsFinal(session); err != nil {
		return nil, failure("search the token", err)
	}
	return all, nil
}
