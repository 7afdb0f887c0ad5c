package worker_test

import (
	"testing"

	"github.com/kekd/kekd/hsm/hsmtest"
	"github.com/kekd/kekd/hsm/worker"
)

func conformance(t *testing.T, workers, parallel int) {
	hsmtest.Run(t, func(t *testing.T, n int) []hsmtest.Device {
		h := hsmtest.NewSoftHSM(t, []string{"east", "west"}[:n]...)
		var devices []hsmtest.Device
		for _, token := range h.Tokens {
			p := openPool(t, worker.Config{
				Workers: workers,
				Command: commandOf(t, workerConfig{Kind: "token", Module: token.Module, Serial: token.Serial, Parallel: parallel}),
			})
			devices = append(devices, hsmtest.Device{Token: p, Manager: p, Agreer: p})
		}
		return devices
	})
}

func TestConformance(t *testing.T) {
	t.Run("OneWorker", func(t *testing.T) { conformance(t, 1, 1) })
	t.Run("TwoWorkers", func(t *testing.T) { conformance(t, 2, 1) })
	t.Run("Parallel", func(t *testing.T) { conformance(t, 1, 8) })
}
