package state

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/policy"
)

// A bound decides what is refused and what is forgotten, so that an old log means another thing with
// another bound. The golden log is too short to meet them.
func TestBoundsAreThoseOfOldLogs(t *testing.T) {
	const year = 365 * 24 * time.Hour
	want := map[string]uint64{
		"outcomes": 65_536, "life of an outcome": uint64(24 * time.Hour), "forgotten at once": 256,
		"tenants": 100_000, "keys of a tenant": 1_000, "versions": 10_000, "services": 10_000, "rules of a service": 1_000,
		"bytes of a name": 63, "bytes of a reason": 256, "bytes of an identity": 1024, "bytes of a signature": 1024,
		"context entries": 16, "bytes of a context key": 128, "bytes of a context value": 1024,
		"seals of a key": 1 << 32, "seals at once": 1 << 24, "a limit": 1_000_000_000, "ahead": uint64(time.Second),
		"invitations": 256, "life of an invitation": uint64(24 * time.Hour), "bytes of an address": 259,
		"least staleness": uint64(time.Second), "most staleness": uint64(24 * time.Hour),
		"shortest period": uint64(time.Hour), "longest period": uint64(10 * year),
	}
	got := map[string]uint64{
		"outcomes": maxOutcomes, "life of an outcome": uint64(outcomeLife), "forgotten at once": maxForgotten,
		"tenants": MaxTenants, "keys of a tenant": MaxKeysPerTenant, "versions": MaxVersions, "services": MaxServices, "rules of a service": MaxRulesPerService,
		"bytes of a name": hierarchy.MaxNameLen, "bytes of a reason": MaxReason, "bytes of an identity": maxIdentity, "bytes of a signature": maxSignature,
		"context entries": hierarchy.MaxContextEntries, "bytes of a context key": hierarchy.MaxContextKeyLen, "bytes of a context value": hierarchy.MaxContextValueLen,
		"seals of a key": MaxWraps, "seals at once": MaxReservation, "a limit": policy.MaxLimit, "ahead": uint64(maxAhead),
		"invitations": MaxInvitations, "life of an invitation": uint64(MaxInvitationLife), "bytes of an address": uint64(maxAddress),
		"least staleness": uint64(MinMaxStaleness), "most staleness": uint64(MaxMaxStaleness),
		"shortest period": uint64(MinRotateEvery), "longest period": uint64(MaxRotateEvery),
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-old +today):\n%s", diff)
	}
}
