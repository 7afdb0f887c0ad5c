package softhsm

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// A file of SoftHSM's object store (src/lib/object_store/ObjectFile.cpp of 2.6.1) is a generation
// number, then attributes to the end of the file: type, kind, value. Every number is 8 bytes, big
// endian. There is no length and no checksum: that a file is whole shows in its last attribute
// ending where the file ends, and in the attributes that SoftHSM writes first or last being there.
//
// Values are looked at for their length alone. Those of private objects are encrypted.

// Kinds of attributes. Within a map the same numbers mean the same (File.cpp), but no maps.
const (
	kindBool       = 1
	kindNumber     = 2
	kindBytes      = 3
	kindMap        = 4
	kindMechanisms = 5
)

// Attribute types, classes and flags, of PKCS#11 v2.40 and of SoftHSM's OSAttributes.h.
const (
	ckaClass             = 0x000
	ckaToken             = 0x001
	ckaPrivate           = 0x002
	ckaLabel             = 0x003
	ckaApplication       = 0x010
	ckaValue             = 0x011
	ckaObjectID          = 0x012
	ckaCheckValue        = 0x090
	ckaKeyType           = 0x100
	ckaID                = 0x102
	ckaModulus           = 0x120
	ckaPrivateExponent   = 0x123
	ckaLocal             = 0x163
	ckaModifiable        = 0x170
	ckaCopyable          = 0x171
	ckaDestroyable       = 0x172
	ckaECPoint           = 0x181
	ckaAllowedMechanisms = 0x40000600

	ckaTokenLabel  = 0x80005349
	ckaTokenSerial = 0x8000534a
	ckaTokenFlags  = 0x8000534b
	ckaTokenSOPIN  = 0x8000534c
	ckaTokenPIN    = 0x8000534d

	ckoData        = 0
	ckoCertificate = 1
	ckoPublicKey   = 2
	ckoPrivateKey  = 3
	ckoSecretKey   = 4

	ckfUserPINInitialized = 0x8
)

// attribute is what is remembered of one: never its bytes.
type attribute struct {
	kind   uint64
	number uint64 // of kindNumber
	length uint64 // of kindBytes
}

type attributes map[uint64]attribute

// parse reads the structure of a file, and fails unless it ends with a complete attribute.
func parse(file []byte) (attributes, error) {
	r := reader{file}
	if _, ok := r.number(); !ok {
		return nil, errors.New("no generation number")
	}
	attrs := attributes{}
	for len(r.rest) > 0 {
		at := len(file) - len(r.rest)
		typ, a, ok := r.attribute()
		if !ok {
			return nil, fmt.Errorf("no complete attribute at byte %d of %d", at, len(file))
		}
		if _, twice := attrs[typ]; twice {
			return nil, fmt.Errorf("attribute %#x stands twice", typ)
		}
		attrs[typ] = a
	}
	return attrs, nil
}

// renew gives a file a generation that no process has seen. A module that met the file while it
// was torn gave the object up, and reads it again only if the generation is not the last it knew.
// SoftHSM counts by ones.
func renew(file []byte) {
	binary.BigEndian.PutUint64(file, binary.BigEndian.Uint64(file)+1<<32)
}

// reader consumes a file from the front.
type reader struct{ rest []byte }

func (r *reader) skip(n uint64) bool {
	if n > uint64(len(r.rest)) {
		return false
	}
	r.rest = r.rest[n:]
	return true
}

func (r *reader) number() (uint64, bool) {
	if len(r.rest) < 8 {
		return 0, false
	}
	n := binary.BigEndian.Uint64(r.rest)
	r.rest = r.rest[8:]
	return n, true
}

func (r *reader) attribute() (typ uint64, a attribute, ok bool) {
	if typ, ok = r.number(); !ok {
		return 0, a, false
	}
	if a.kind, ok = r.number(); !ok {
		return 0, a, false
	}
	switch a.kind {
	case kindBool:
		ok = r.skip(1)
	case kindNumber:
		a.number, ok = r.number()
	case kindBytes:
		a.length, ok = r.number()
		ok = ok && r.skip(a.length)
	case kindMechanisms:
		var n uint64
		n, ok = r.number()
		ok = ok && n <= uint64(len(r.rest))/8 && r.skip(8*n)
	case kindMap:
		ok = r.attributeMap()
	default:
		ok = false
	}
	return typ, a, ok
}

// attributeMap reads a map: its length in bytes, then as many attributes as fill it.
func (r *reader) attributeMap() bool {
	n, ok := r.number()
	if !ok || n > uint64(len(r.rest)) {
		return false
	}
	inner := reader{r.rest[:n]}
	for len(inner.rest) > 0 {
		if _, a, ok := inner.attribute(); !ok || a.kind == kindMap {
			return false
		}
	}
	return r.skip(n)
}

func (as attributes) filled(typ uint64) bool {
	a, ok := as[typ]
	return ok && a.kind == kindBytes && a.length > 0
}

func (as attributes) lacks(types ...uint64) error {
	for _, t := range types {
		if _, ok := as[t]; !ok {
			return fmt.Errorf("no attribute %#x", t)
		}
	}
	return nil
}

// checkObject says why the file of an object is not whole, or nil.
//
// SoftHSM creates an object by writing its file anew for each default attribute, then for the
// caller's template, then for the value. Attributes stand in ascending order, so the highest that
// a class always has shows that the end is there, and a value that creation was brought to its
// end.
func checkObject(file []byte) error {
	attrs, err := parse(file)
	if err != nil {
		return err
	}
	class, ok := attrs[ckaClass]
	if !ok || class.kind != kindNumber {
		return errors.New("no class")
	}
	if err := attrs.lacks(ckaToken, ckaPrivate, ckaLabel, ckaModifiable, ckaCopyable, ckaDestroyable); err != nil {
		return err
	}
	switch class.number {
	case ckoPublicKey, ckoPrivateKey, ckoSecretKey:
		if err := attrs.lacks(ckaKeyType, ckaID, ckaLocal, ckaAllowedMechanisms); err != nil {
			return err
		}
	}
	var complete bool
	switch class.number {
	case ckoSecretKey:
		complete = attrs.filled(ckaValue) && attrs.filled(ckaCheckValue)
	case ckoPrivateKey:
		complete = attrs.filled(ckaValue) || attrs.filled(ckaPrivateExponent)
	case ckoPublicKey:
		complete = attrs.filled(ckaECPoint) || attrs.filled(ckaModulus) || attrs.filled(ckaValue)
	case ckoCertificate:
		complete = attrs.filled(ckaValue)
	case ckoData:
		// Each of these may be empty in good faith; all of them are only before the template.
		complete = attrs.filled(ckaValue) || attrs.filled(ckaLabel) ||
			attrs.filled(ckaApplication) || attrs.filled(ckaObjectID)
	default:
		complete = true
	}
	if !complete {
		return fmt.Errorf("an object of class %d without its value", class.number)
	}
	return nil
}

// checkToken says why a token.object is not whole, or nil.
func checkToken(file []byte) error {
	attrs, err := parse(file)
	if err != nil {
		return err
	}
	if err := attrs.lacks(ckaTokenLabel, ckaTokenSerial, ckaTokenFlags); err != nil {
		return err
	}
	if !attrs.filled(ckaTokenSOPIN) {
		return errors.New("a token without the security officer's PIN")
	}
	if attrs[ckaTokenFlags].number&ckfUserPINInitialized != 0 && !attrs.filled(ckaTokenPIN) {
		return errors.New("a token that says it has a user PIN, without it")
	}
	return nil
}
