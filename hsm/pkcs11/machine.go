package pkcs11

// #cgo linux LDFLAGS: -ldl
// #include "native.h"
import "C"

import (
	"bytes"
	"fmt"
	"unsafe"

	"github.com/miekg/pkcs11"

	"github.com/kekd/kekd/hsm"
)

// functions is a module's function list.
type functions struct{ list *C.ck_functions }

// loadFunctions finds the function list of a module. The module stays loaded until the
// process ends.
func loadFunctions(path string) (functions, error) {
	p := C.CString(path)
	defer C.free(unsafe.Pointer(p))
	list := C.load_functions(p)
	if list == nil {
		return functions{}, fmt.Errorf("%w: %s", hsm.ErrNoModule, path)
	}
	return functions{list}, nil
}

// attributeRoom is how long an attribute may be to be read in one call, in bytes: longer than any that this
// package writes.
const attributeRoom = 256

// readObject reads attributes of an object in one call. False: the call did not give all of them, be it that
// one is longer, that the object lacks one, or that the token has failed.
func (f functions) readObject(session pkcs11.SessionHandle, object pkcs11.ObjectHandle, types []uint) (map[uint][]byte, bool) {
	out := make([]byte, len(types)*attributeRoom)
	kinds, lens := make([]C.ck_ulong, len(types)), make([]C.ck_ulong, len(types))
	for i, t := range types {
		kinds[i] = C.ck_ulong(t)
	}
	if C.read_object(f.list, C.ck_ulong(session), C.ck_ulong(object), &kinds[0], &lens[0], C.ck_ulong(len(types)), (*C.uint8_t)(&out[0]), attributeRoom) != 0 {
		return nil, false
	}
	read := make(map[uint][]byte, len(types))
	for i, t := range types {
		if lens[i] > attributeRoom { // CK_UNAVAILABLE_INFORMATION
			return nil, false
		}
		read[t] = bytes.Clone(out[i*attributeRoom:][:lens[i]])
	}
	return read, true
}

const (
	machineSteps = 256     // more than MaxTargets + 1
	machineArena = 2 << 20 // bytes; more than the largest operation, 1.3 MB. Untouched pages cost nothing
)

// A machine runs data key operations in the module, many in one crossing from Go to C.
//
// Why not miekg/pkcs11's Encrypt and Decrypt: they cross four times for each operation, leave
// the plaintext in freed C memory, and lose their buffer whenever a tag does not fit, so that
// garbage from a caller would eat the daemon's memory. Here everything lives in one block of C
// memory that is wiped after each run.
//
// A machine belongs to one goroutine.
type machine struct {
	fns   functions
	steps []C.step // C memory
	n     int
	arena []byte // C memory
	used  int
}

func newMachine(fns functions) *machine {
	steps := (*C.step)(C.calloc(machineSteps, C.sizeof_step))
	arena := (*byte)(C.calloc(machineArena, 1))
	return &machine{fns: fns, steps: unsafe.Slice(steps, machineSteps), arena: unsafe.Slice(arena, machineArena)}
}

// free gives the memory back. Not while a run hangs in the module.
func (m *machine) free() {
	m.reset()
	C.free(unsafe.Pointer(&m.steps[0]))
	C.free(unsafe.Pointer(&m.arena[0]))
	m.steps, m.arena = nil, nil
}

// reset forgets the steps and wipes what they left.
func (m *machine) reset() {
	clear(m.arena[:m.used])
	m.n, m.used = 0, 0
}

// fits tells whether this many more steps and bytes have room.
func (m *machine) fits(steps, bytes int) bool {
	return m.n+steps <= len(m.steps) && m.used+bytes <= len(m.arena)
}

func (m *machine) alloc(n int) []byte {
	b := m.arena[m.used : m.used+n : m.used+n]
	m.used += n
	return b
}

func (m *machine) store(b []byte) []byte {
	c := m.alloc(len(b))
	copy(c, b)
	return c
}

func cbytes(b []byte) (*C.uint8_t, C.ck_ulong) {
	return (*C.uint8_t)(unsafe.SliceData(b)), C.ck_ulong(len(b))
}

func (m *machine) add(s C.step) int {
	m.steps[m.n] = s
	m.n++
	return m.n - 1
}

// given adds bytes that later steps take as their source.
func (m *machine) given(b []byte) int {
	s := C.step{kind: C.STEP_GIVEN}
	s.out, s.out_len = cbytes(m.store(b))
	return m.add(s)
}

// random adds n bytes of the token's generator.
func (m *machine) random(n int) int {
	s := C.step{kind: C.STEP_RANDOM}
	s.out, s.out_len = cbytes(m.alloc(n))
	return m.add(s)
}

// open adds the opening of a ciphertext.
func (m *machine) open(key pkcs11.ObjectHandle, iv, aad, ciphertext []byte) int {
	s := C.step{kind: C.STEP_OPEN, key: C.ck_ulong(key)}
	s.iv, s.iv_len = cbytes(m.store(iv))
	s.aad, s.aad_len = cbytes(m.store(aad))
	s.in, s.in_len = cbytes(m.store(ciphertext))
	// Not shorter than the ciphertext: SoftHSM asks for room for the tag, too.
	s.out, s.out_len = cbytes(m.alloc(len(ciphertext)))
	return m.add(s)
}

// seal adds the sealing of what an earlier step gives, which has at most size bytes.
func (m *machine) seal(key pkcs11.ObjectHandle, iv, aad []byte, source, size int) int {
	s := C.step{kind: C.STEP_SEAL, key: C.ck_ulong(key), source: C.int32_t(source)}
	s.iv, s.iv_len = cbytes(m.store(iv))
	s.aad, s.aad_len = cbytes(m.store(aad))
	s.out, s.out_len = cbytes(m.alloc(size + hsm.TagSize))
	return m.add(s)
}

// run carries the steps out, in order.
func (m *machine) run(session pkcs11.SessionHandle) {
	if m.n > 0 {
		C.run_steps(m.fns.list, C.ck_ulong(session), &m.steps[0], C.int(m.n))
	}
}

// rv is how a step ended, and whether its Init call said so.
func (m *machine) rv(i int) (code pkcs11.Error, atInit bool) {
	return pkcs11.Error(m.steps[i].rv), m.steps[i].at_init != 0
}

// skipped tells whether a step did not run since its source failed.
func (m *machine) skipped(i int) bool { return m.steps[i].rv == C.STEP_SKIPPED }

// isOpen tells a step that opens.
func (m *machine) isOpen(i int) bool { return m.steps[i].kind == C.STEP_OPEN }

// out is what a step gave, in the machine's own memory: valid until reset.
func (m *machine) out(i int) []byte {
	s := &m.steps[i]
	return unsafe.Slice((*byte)(s.out), int(s.out_len))
}

// iv is the IV that a step used; the token may have chosen it.
func (m *machine) iv(i int) []byte {
	s := &m.steps[i]
	return unsafe.Slice((*byte)(s.iv), int(s.iv_len))
}

// cbcEncryptData makes the parameter of CKM_AES_CBC_ENCRYPT_DATA, for which miekg/pkcs11 has
// no type: a zero IV, and data in C memory until free is called.
func cbcEncryptData(data []byte) (parameter []byte, free func()) {
	p := (*C.ck_cbc_encrypt_data_params)(C.calloc(1, C.sizeof_ck_cbc_encrypt_data_params))
	d := C.CBytes(data)
	p.data, p.len = (*C.uint8_t)(d), C.ck_ulong(len(data))
	return unsafe.Slice((*byte)(unsafe.Pointer(p)), int(C.sizeof_ck_cbc_encrypt_data_params)), func() {
		C.free(d)
		C.free(unsafe.Pointer(p))
	}
}
