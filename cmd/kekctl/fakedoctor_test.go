package main

import (
	"context"

	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

// Doctor finds a token that lacks what some lack. `fake ail` makes the first check worse.
func (f *fakeAdmin) Doctor(context.Context, *kekdv1.DoctorRequest) (*kekdv1.DoctorResponse, error) {
	f.h.mu.Lock()
	defer f.h.mu.Unlock()
	return &kekdv1.DoctorResponse{Orphans: f.h.orphans(), Checks: []*kekdv1.Check{
		{Name: "latch", Status: "ok", Meaning: "a disabled tenant's keys are switched off in the token, too"},
		{Name: "copies", Status: "degraded", Meaning: "keys are read\nfrom the token each time", Action: "nothing"},
		{Name: "durability", Status: "ok", Meaning: "a crash loses nothing"},
		{Name: "room", Status: "ok", Meaning: "1000 keys can be made"},
		{Name: "workers", Status: "ok", Meaning: "2 token workers serve"},
	}}, nil
}

// fakeObjects is how many objects the token of a fake holds.
const fakeObjects = 1000

// objects counts those of a tenant, or of all.
func (h *fakeHierarchy) objects(tenant string) (n uint64) {
	for name, k := range h.keys {
		if tenant == "" || name.Tenant == tenant {
			n += uint64(len(k.Versions))
		}
	}
	return n
}
