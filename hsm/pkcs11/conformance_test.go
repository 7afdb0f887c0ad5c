package pkcs11_test

import (
	"testing"

	"github.com/kekd/kekd/hsm/hsmtest"
	"github.com/kekd/kekd/hsm/pkcs11"
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
