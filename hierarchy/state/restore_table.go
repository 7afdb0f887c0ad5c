package state

import (
	"slices"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/policy"
)

// What a restore does with each field of a snapshot. docs/RESTORE.md has the same in the same words, and a
// test compares the two with the fields that there are: whoever adds a field has to decide.

// treatment is of one field, in words.
type treatment struct {
	field, words string
}

// row is the treatment of a field of T's message.
type row[T any] struct {
	treatment
	// tighten changes what is here by what the snapshot has. None: what is here stands, or another row
	// takes care of it.
	tighten func(to, from *T, now time.Time)
}

func tighten[T any](rows []row[T], to, from *T, now time.Time) {
	for _, r := range rows {
		if r.tighten != nil {
			r.tighten(to, from, now)
		}
	}
}

// Words that come often.
const (
	namesIt  = "says which one it is"
	stands   = "what is here stands"
	pinned   = "what is here stands: members and pins are never brought back"
	notTaken = "not taken"
	leases   = "what is here stands: it is of leases, and those of another time have run out"
)

var tenantRows = []row[Tenant]{
	{treatment{"id", namesIt}, nil},
	{treatment{"name", "says which one it is; under another ID here, the tenant is left out"}, nil},
	{treatment{"state", "the stricter, in the order enabled, disabled, suspended, offboarding, destroyed; at least disabled if the tenant is not here"},
		func(to, from *Tenant, now time.Time) {
			if from.State > to.State {
				to.State, to.StateReason, to.StateAt = from.State, from.StateReason, now
			}
		}},
	{treatment{"state_reason", "the snapshot's, if the state becomes the snapshot's"}, nil},
	{treatment{"max_staleness", "the smaller"},
		func(to, from *Tenant, _ time.Time) { to.MaxStaleness = min(to.MaxStaleness, from.MaxStaleness) }},
	{treatment{"created_at", stands}, nil},
	{treatment{"state_at", "the time of the restore, if the state changes"}, nil},
	{treatment{"placement", stands}, nil},
	{treatment{"limits", "the stricter of each kind"},
		func(to, from *Tenant, _ time.Time) { to.Limits = stricterLimits(to.Limits, from.Limits) }},
}

var keyRows = []row[Key]{
	{treatment{"tenant_id", namesIt}, nil},
	{treatment{"id", namesIt}, nil},
	{treatment{"name", "says which one it is; under another ID here, the key is left out"}, nil},
	{treatment{"created_at", stands}, nil},
	{treatment{"rotate_every", stands}, nil},
	{treatment{"min_unwrap_version", "the larger"},
		// Of a key that comes in pieces the versions may not all be here yet. The last piece has them.
		func(to, from *Key, _ time.Time) {
			to.MinUnwrapVersion = min(max(to.MinUnwrapVersion, from.MinUnwrapVersion), uint32(len(to.Versions)))
		}},
	{treatment{"versions", "by number; one that is not here comes back suspended, or as it was if its tenant is not enabled"}, nil},
}

var versionRows = []row[Version]{
	{treatment{"number", namesIt}, nil},
	{treatment{"attempt", "the larger, while it is minted; else what is here stands"},
		func(to, from *Version, _ time.Time) {
			switch {
			case to.State != hierarchy.PreActive || from.Attempt < to.Attempt:
			case base(from) != hierarchy.PreActive && sameRegions(to, from):
				// It was in use. Its objects are there, and its seals are counted.
				to.Attempt, to.Regions, to.KDF = from.Attempt, slices.Clone(from.Regions), from.KDF
				to.dropReservations()
			case base(from) == hierarchy.PreActive && from.Attempt > to.Attempt:
				// The attempt that is here was given up, and its objects may be destroyed.
				to.Attempt = from.Attempt
				to.forgetMinted()
			}
		}},
	{treatment{"state", "the stricter, in the order active, deactivated, compromised, destroyed, and suspended if either is; pre-active there closes nothing; pre-active here and in use there comes back suspended"},
		tightenState},
	{treatment{"resume_to", "the stricter, in the same order"}, nil},
	{treatment{"state_reason", "the snapshot's, if the state changes"}, nil},
	{treatment{"created_at", stands}, nil},
	{treatment{"activated_at", stands}, nil},
	{treatment{"state_at", "the time of the restore, if the state changes"}, nil},
	{treatment{"cause", stands}, nil},
	{treatment{"kdf", "with the attempt"}, nil},
	{treatment{"regions", "by region, if the attempt is the same"},
		func(to, from *Version, now time.Time) {
			if to.Attempt != from.Attempt || to.State == hierarchy.PreActive {
				return
			}
			for i := range to.Regions {
				if r, ok := from.Region(to.Regions[i].Region); ok {
					tighten(regionKeyRows, &to.Regions[i], r, now)
				}
			}
		}},
}

// tightenState closes a version as far as it was closed. That it was not minted yet says nothing against it:
// it has come further since. The reverse is a history that was lost: what was minted in it is used again
// only if somebody resumes it, and if this history has given its attempt up, only to open.
func tightenState(to, from *Version, now time.Time) {
	if base(from) == hierarchy.PreActive {
		return
	}
	state, suspended, reason := base(to), to.State == hierarchy.Suspended || from.State == hierarchy.Suspended, from.StateReason
	if state == hierarchy.PreActive {
		suspended, reason = true, restoredReason(from.StateReason)
		if to.Attempt != from.Attempt || !sameRegions(to, from) {
			state = hierarchy.Compromised
		}
	}
	state = max(state, base(from))
	before, resumes := to.State, hierarchy.VersionState(0)
	if suspended && state != hierarchy.Destroyed {
		state, resumes = hierarchy.Suspended, state
	}
	to.State, to.ResumeTo = state, resumes
	if state != before {
		to.StateReason, to.StateAt = reason, now
	}
}

var regionKeyRows = []row[RegionKey]{
	{treatment{"region_id", namesIt}, nil},
	{treatment{"object_id", "the snapshot's, if there is none here"},
		func(to, from *RegionKey, _ time.Time) {
			if !to.Minted && from.Minted {
				to.Minted, to.Object, to.Check, to.MintedAt = true, from.Object, from.Check, from.MintedAt
			}
		}},
	{treatment{"check_value", "with the object; if both have another, it is named as left out"}, nil},
	{treatment{"minted_at", "with the object"}, nil},
	{treatment{"wraps_reserved", "the larger"},
		// What nodes would give back they have taken of a smaller count.
		func(to, from *RegionKey, _ time.Time) {
			if from.WrapsReserved > to.WrapsReserved {
				to.WrapsReserved, to.Reservations = from.WrapsReserved, nil
			}
		}},
	{treatment{"reservations", "what is here stands, and is void if more seals are counted than here"}, nil},
}

var reservationRows = []treatment{{"node_id", notTaken}, {"count", notTaken}}

var ruleRows = []row[policy.Rule]{
	{treatment{"service", "says which one it is; a rule that is not here is not added"}, nil},
	{treatment{"pattern", namesIt}, nil},
	{treatment{"ops", "what both allow; if that is nothing, the rule is taken back"},
		func(to, from *policy.Rule, _ time.Time) { to.Ops &= from.Ops }},
	{treatment{"required_context", "what either requires; if no context has all of it, the rule is taken back"},
		func(to, from *policy.Rule, _ time.Time) {
			required, ok := requireBoth(to.Required, from.Required)
			if to.Required = required; !ok {
				to.Ops = 0
			}
		}},
	{treatment{"require_reason", "required if either does"},
		func(to, from *policy.Rule, _ time.Time) { to.RequireReason = to.RequireReason || from.RequireReason }},
	{treatment{"limits", "the stricter of each kind"},
		func(to, from *policy.Rule, _ time.Time) { to.Limits = stricterLimits(to.Limits, from.Limits) }},
}

var requiredContextRows = []treatment{
	{"key", namesIt},
	{"value", "the one that is given, if the other is any; if two are given and differ, the rule is taken back"},
}

// requireBoth are the requirements of two lists, sorted by key as they are; false if no context can have all
// of them.
func requireBoth(a, b []policy.Requirement) ([]policy.Requirement, bool) {
	both, possible := slices.Clone(a), true
	for _, q := range b {
		i, found := slices.BinarySearchFunc(both, q.Key, func(r policy.Requirement, key string) int {
			switch {
			case r.Key < key:
				return -1
			case r.Key > key:
				return 1
			}
			return 0
		})
		switch {
		case !found:
			both = slices.Insert(both, i, q)
		case both[i].AnyValue:
			both[i] = q
		case !q.AnyValue && q.Value != both[i].Value:
			possible = false
		}
	}
	return both, possible && len(both) <= hierarchy.MaxContextEntries
}

var limitRows = []treatment{
	{"count", "the smaller; where the windows differ, what fits both"},
	{"per", "the shorter window, if a count of it fits the longer one; else the longer"},
}

func stricterLimits(a, b policy.Limits) policy.Limits {
	return policy.Limits{Short: stricterLimit(a.Short, b.Short), Long: stricterLimit(a.Long, b.Long)}
}

// stricterLimit allows nothing that one of the two would refuse. The windows of each length begin where one of
// the shorter ones does, so that so many in each of those are never more than the longer one allows.
func stricterLimit(a, b policy.Limit) policy.Limit {
	switch {
	case a == policy.Limit{}:
		return b
	case b == policy.Limit{}:
		return a
	case a.Per == b.Per:
		return policy.Limit{Count: min(a.Count, b.Count), Per: a.Per}
	case a.Per > b.Per:
		a, b = b, a
	}
	if n := b.Count / uint64(b.Per/a.Per); n > 0 {
		return policy.Limit{Count: min(a.Count, n), Per: a.Per}
	}
	return policy.Limit{Count: min(a.Count, b.Count), Per: b.Per}
}

var usesRows = []row[Uses]{
	{treatment{"tenant_id", namesIt}, nil},
	{treatment{"service", namesIt}, nil},
	{treatment{"pattern", namesIt}, nil},
	{treatment{"per", namesIt}, nil},
	{treatment{"start", "the later; a window that is over or has not begun is not taken"},
		func(to, from *Uses, _ time.Time) {
			if from.Start.After(to.Start) {
				to.Start, to.Count = from.Start, from.Count
			}
		}},
	{treatment{"count", "the larger, of one window"},
		func(to, from *Uses, _ time.Time) {
			if from.Start.Equal(to.Start) {
				to.Count = max(to.Count, from.Count)
			}
		}},
}

var removedNodeRows = []treatment{
	{"id", "never a member's again; if it is one here, it is named as left out"},
	{"name", "the snapshot's, if the ID is not known here"},
	{"region_id", "the snapshot's, if the ID is not known here"},
	{"removed_at", "the snapshot's, if the ID is not known here"},
}

// alike treats fields of a message in one way.
func alike(words string, fields ...string) (rows []treatment) {
	for _, f := range fields {
		rows = append(rows, treatment{f, words})
	}
	return rows
}

func inWords[T any](rows []row[T]) (list []treatment) {
	for _, r := range rows {
		list = append(list, r.treatment)
	}
	return list
}

// restoreTable is of all messages of a snapshot, in the order in which they stand in one.
func restoreTable() []struct {
	message string
	fields  []treatment
} {
	return []struct {
		message string
		fields  []treatment
	}{
		{"SnapshotHeader", append([]treatment{{"cluster_id", "has to be this cluster's"}},
			alike(notTaken, "format", "index", "stamp", "epoch", "state_hash", "records", "feature_level", "epoch_statement")...)},
		{"Region", alike(pinned, "id", "name", "role", "identity", "kdf", "minting_node", "added_index")},
		{"Node", alike(pinned, "id", "name", "region_id", "voter", "address", "identity", "incarnation")},
		{"Tenant", inWords(tenantRows)},
		{"Key", inWords(keyRows)},
		{"Version", inWords(versionRows)},
		{"RegionKey", inWords(regionKeyRows)},
		{"Reservation", reservationRows},
		{"Service", alike("what is here stands: a service is never added, nor matched to other callers", "name", "uid", "gid", "created_at")},
		{"Rule", inWords(ruleRows)},
		{"RequiredContext", requiredContextRows},
		{"Limit", limitRows},
		{"Anchor", alike("what is here stands: a loss that was accepted since stays accepted", "node_id", "sequence", "head", "signature", "at")},
		{"Outcome", alike(notTaken, "command_id", "command_hash", "stamp", "index", "error_code", "error_message")},
		{"Uses", inWords(usesRows)},
		{"RemovedNode", removedNodeRows},
		{"Invitation", alike("not taken: an invitation opens", "id", "proof_hash", "node", "region", "role", "voter", "expires_at")},
		{"Tombstone", alike(leases, "holder", "index", "wait")},
		{"Holder", alike(leases, "node_id", "incarnation")},
		{"Fence", alike(leases, "index", "kind", "tenant_id", "wait", "lowered_from", "holders", "since")},
	}
}
