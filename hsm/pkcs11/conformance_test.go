package pkcs11_test

import (
	"testing"

	"github.com/kekd/kekd/hsm/hsmtest"
	"github.com/kekd/kekd/hsm/pkcs11"
	"github.com/kekd/kekd/softhsm-tests/faultmodule"
)

func conformance(cfg pkcs11.Config) func(*testing.T) {
	return func(t *testing.T) {
		hsmtest.Run(t, func(t *testing.T, n int) []hsmtest.Device {
			h := hsmtest.NewSoftHSM(t, []string{"east", "west"}[:n]...)
			var devices []hsmtest.Device
			for i := range n {
				token := h.Open(t, i, cfg)
				devices = append(devices, hsmtest.Device{Token: token, Manager: token, Agreer: token})
			}
			return devices
		})
	}
}

func TestConformance(t *testing.T) {
	t.Run("SoftHSM", conformance(pkcs11.Config{Manager: true}))
	t.Run("WithoutCopies", conformance(pkcs11.Config{Manager: true, Copies: -1}))
	// Several threads in the module, and keys that fight for a single copy.
	t.Run("FourSlotsOneCopy", conformance(pkcs11.Config{Manager: true, Slots: 4, Copies: 1}))
}

// TestConformanceOfShapes: what SoftHSM can do, and other tokens cannot or do otherwise, passes too.
func TestConformanceOfShapes(t *testing.T) {
	for _, shape := range faultmodule.Shapes() {
		t.Run(shape.Name, func(t *testing.T) {
			m := faultmodule.New(t)
			m.Setenv()
			m.Control.Set(shape.Rules...)
			hsmtest.Run(t, func(t *testing.T, n int) []hsmtest.Device {
				h := hsmtest.NewSoftHSM(t, []string{"east", "west"}[:n]...)
				var devices []hsmtest.Device
				for i := range n {
					h.Tokens[i].Module = m.Path
					token := h.Open(t, i, pkcs11.Config{Manager: true})
					devices = append(devices, hsmtest.Device{Token: token, Manager: token, Agreer: token})
				}
				return devices
			})
			if m.Counters.Calls("C_GenerateKey") == 0 {
				t.Error("the shape was not asked")
			}
		})
	}
}
