package hierarchy_test

import (
	"fmt"
	"testing"

	"github.com/kekd/kekd/hierarchy"
)

// The names stand in what the API and kekctl print, and scripts compare them.
func TestNamesOfStates(t *testing.T) {
	for state, want := range map[fmt.Stringer]string{
		hierarchy.TenantEnabled:     "enabled",
		hierarchy.TenantDisabled:    "disabled",
		hierarchy.TenantSuspended:   "suspended",
		hierarchy.TenantOffboarding: "offboarding",
		hierarchy.TenantDestroyed:   "destroyed",
		hierarchy.TenantState(0):    "state(0)",
		hierarchy.TenantState(6):    "state(6)",

		hierarchy.PreActive:         "pre-active",
		hierarchy.Active:            "active",
		hierarchy.Deactivated:       "deactivated",
		hierarchy.Suspended:         "suspended",
		hierarchy.Compromised:       "compromised",
		hierarchy.Destroyed:         "destroyed",
		hierarchy.VersionState(0):   "state(0)",
		hierarchy.VersionState(255): "state(255)",

		hierarchy.RoleVoting:    "voting",
		hierarchy.RoleReplica:   "replica",
		hierarchy.RoleWitness:   "witness",
		hierarchy.RegionRole(0): "state(0)",
		hierarchy.RegionRole(4): "state(4)",
	} {
		if got := state.String(); got != want {
			t.Errorf("%T %d is called %s, want %s", state, state, got, want)
		}
	}
}

func TestPrincipalAsText(t *testing.T) {
	p := hierarchy.Principal{UID: 1<<32 - 1, GID: 100, PID: 7}
	if got, want := p.String(), "uid=4294967295 gid=100 pid=7"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
