package pkcs11_test

import (
	"bytes"
	"testing"

	"github.com/kekd/kekd/hsm/hsmtest"
	kekd "github.com/kekd/kekd/hsm/pkcs11"
)

// TestMachineWipes: no data key stays in the machine's memory after its chunk.
func TestMachineWipes(t *testing.T) {
	fns, err := kekd.LoadFunctions(hsmtest.Module)
	if err != nil {
		t.Fatal(err)
	}
	m := kekd.NewMachine(fns)
	dek := []byte("a data key that nobody should see")
	memory := m.Out(m.Given(dek)) // the machine's own memory
	if !bytes.Equal(memory, dek) {
		t.Fatal("the data key is not where it should be")
	}
	m.Reset()
	if !bytes.Equal(memory, make([]byte, len(dek))) {
		t.Error("the data key is still there after the reset")
	}
}
