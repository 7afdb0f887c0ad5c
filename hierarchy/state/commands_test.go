package state_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/state"
)

// A step is a command on the populated cluster: taken, or refused with an error and in words
// that hold a part.
type step struct {
	name string
	// before is applied first, and must be taken.
	before []*commandpb.Command
	c      *commandpb.Command
	want   error
	words  string
}

// with changes a copy of a command.
func with[T any](c *commandpb.Command, get func(*commandpb.Command) T, change func(T)) *commandpb.Command {
	c = proto.Clone(c).(*commandpb.Command)
	change(get(c))
	return c
}

var (
	long       = strings.Repeat("x", 300)
	tooLong    = strings.Repeat("a", 64)
	badID      = []byte("short")
	getTenant  = (*commandpb.Command).GetCreateTenant
	getKey     = (*commandpb.Command).GetCreateKey
	getState   = (*commandpb.Command).GetSetTenantState
	getRotate  = (*commandpb.Command).GetRotateKey
	getMinted  = (*commandpb.Command).GetRecordMinted
	getVersion = (*commandpb.Command).GetSetVersionState
	getReserve = (*commandpb.Command).GetReserveWraps
	getReturn  = (*commandpb.Command).GetReturnWraps
	getAnchor  = (*commandpb.Command).GetAnchorAudit
	getRule    = func(c *commandpb.Command) *commandpb.Rule { return c.GetAllowPolicy().GetRule() }
)

func setTenant(name string, staleness *int64) *commandpb.Command {
	return &commandpb.Command{Body: &commandpb.Command_SetTenant{SetTenant: &commandpb.SetTenant{TenantId: id(name), MaxStaleness: staleness}}}
}

func setKey(tenant, key string, every *int64, min *uint32) *commandpb.Command {
	return &commandpb.Command{Body: &commandpb.Command_SetKey{SetKey: &commandpb.SetKey{TenantId: id(tenant), KeyId: id(key), RotateEvery: every, MinUnwrapVersion: min}}}
}

func restart(tenant, key string, version, attempt uint32) *commandpb.Command {
	return &commandpb.Command{Body: &commandpb.Command_RestartMinting{RestartMinting: &commandpb.RestartMinting{
		TenantId: id(tenant), KeyId: id(key), Version: version, Attempt: attempt,
	}}}
}

func deleteService(name string) *commandpb.Command {
	return &commandpb.Command{Body: &commandpb.Command_DeleteService{DeleteService: &commandpb.DeleteService{Name: name}}}
}

func revoke(service, pattern string) *commandpb.Command {
	return &commandpb.Command{Body: &commandpb.Command_RevokePolicy{RevokePolicy: &commandpb.RevokePolicy{Service: service, Pattern: pattern}}}
}

// commands says of each kind of command what is taken and what is refused. The cluster that they
// are applied to is that of [populated].
var commands = map[string][]step{
	"init_cluster": {
		{name: "again", c: &commandpb.Command{Body: &commandpb.Command_InitCluster{InitCluster: initCluster()}}, want: hierarchy.ErrFailedPrecondition, words: clusterID.String()},
		// What else it refuses is in TestInitCluster: it needs an empty state.
	},
	"tick": {
		{name: "plain", c: tick()},
		{name: "of another index", c: &commandpb.Command{Body: &commandpb.Command_Tick{Tick: &commandpb.Tick{StateHash: make([]byte, 32), StateIndex: 1}}}},
	},
	"create_tenant": {
		{name: "ok", c: createTenant("initech")},
		{name: "name taken", c: with(createTenant("acme"), getTenant, func(m *commandpb.CreateTenant) { m.TenantId = id("other") }), want: hierarchy.ErrAlreadyExists, words: "acme"},
		{name: "ID taken", c: with(createTenant("acme"), getTenant, func(m *commandpb.CreateTenant) { m.Name = "other" }), want: hierarchy.ErrAlreadyExists},
		{name: "no ID", c: with(createTenant("x"), getTenant, func(m *commandpb.CreateTenant) { m.TenantId = nil }), want: hierarchy.ErrInvalidArgument},
		{name: "zero ID", c: with(createTenant("x"), getTenant, func(m *commandpb.CreateTenant) { m.TenantId = make([]byte, 16) }), want: hierarchy.ErrInvalidArgument, words: "zero"},
		{name: "bad name", c: createTenant("Acme"), want: hierarchy.ErrInvalidArgument},
		{name: "long name", c: createTenant(tooLong), want: hierarchy.ErrInvalidArgument},
		{name: "stale too short", c: with(createTenant("x"), getTenant, func(m *commandpb.CreateTenant) { m.MaxStaleness = int64(time.Second) - 1 }), want: hierarchy.ErrInvalidArgument, words: "1s"},
		{name: "stale too long", c: with(createTenant("x"), getTenant, func(m *commandpb.CreateTenant) { m.MaxStaleness = int64(24*time.Hour) + 1 }), want: hierarchy.ErrInvalidArgument, words: "24h"},
	},
	"set_tenant_state": {
		{name: "disable", c: disable("acme")},
		{name: "disable again", before: []*commandpb.Command{disable("acme")}, c: disable("acme")},
		{name: "enable", before: []*commandpb.Command{disable("acme")}, c: enable("acme")},
		{name: "enable the enabled", c: enable("acme")},
		{name: "no reason", c: setTenantState("acme", commandpb.TenantState_TENANT_STATE_DISABLED, ""), want: hierarchy.ErrInvalidArgument, words: "reason"},
		{name: "long reason", c: setTenantState("acme", commandpb.TenantState_TENANT_STATE_DISABLED, long), want: hierarchy.ErrInvalidArgument, words: "256"},
		{name: "reason is no text", c: setTenantState("acme", commandpb.TenantState_TENANT_STATE_DISABLED, "\xff"), want: hierarchy.ErrInvalidArgument, words: "UTF-8"},
		{name: "unknown tenant", c: disable("nobody"), want: hierarchy.ErrNotFound},
		{name: "bad ID", c: with(disable("acme"), getState, func(m *commandpb.SetTenantState) { m.TenantId = badID }), want: hierarchy.ErrInvalidArgument},
		{name: "suspend", c: setTenantState("acme", commandpb.TenantState_TENANT_STATE_SUSPENDED, "r"), want: hierarchy.ErrInvalidArgument},
		{name: "destroy", c: setTenantState("acme", commandpb.TenantState_TENANT_STATE_DESTROYED, "r"), want: hierarchy.ErrInvalidArgument},
		{name: "unspecified", c: setTenantState("acme", 0, "r"), want: hierarchy.ErrInvalidArgument},
		{name: "state beyond a byte", c: setTenantState("acme", 258, "r"), want: hierarchy.ErrInvalidArgument},
		{name: "unknown state", c: setTenantState("acme", 99, "r"), want: hierarchy.ErrInvalidArgument},
	},
	"set_tenant": {
		{name: "ok", c: setTenant("acme", ptr(int64(time.Hour)))},
		{name: "same", c: setTenant("acme", ptr(int64(2*time.Second)))},
		{name: "nothing", c: setTenant("acme", nil), want: hierarchy.ErrInvalidArgument, words: "nothing"},
		{name: "zero", c: setTenant("acme", ptr(int64(0))), want: hierarchy.ErrInvalidArgument},
		{name: "unknown", c: setTenant("nobody", ptr(int64(time.Hour))), want: hierarchy.ErrNotFound},
		{name: "limits", c: limitTenant("acme", perDay(10), perSecond(5))},
		{name: "no limits", before: []*commandpb.Command{limitTenant("acme", perDay(10))}, c: limitTenant("acme")},
		{name: "two long limits", c: limitTenant("acme", perDay(10), perHour(5)), want: hierarchy.ErrInvalidArgument, words: "10/d and 5/h"},
		{name: "a limit of nothing", c: limitTenant("acme", perDay(0)), want: hierarchy.ErrInvalidArgument},
	},
	"create_key": {
		{name: "ok", c: createKey("acme", "invoices")},
		{name: "name of another tenant's key", before: []*commandpb.Command{enable("globex")},
			c: with(createKey("globex", "orders"), getKey, func(m *commandpb.CreateKey) { m.KeyId = id("globex orders") })},
		{name: "name taken", c: with(createKey("acme", "orders"), getKey, func(m *commandpb.CreateKey) { m.KeyId = id("other") }), want: hierarchy.ErrAlreadyExists, words: "acme/orders"},
		{name: "ID taken by another tenant's", before: []*commandpb.Command{enable("globex")},
			c: with(createKey("globex", "orders"), getKey, func(m *commandpb.CreateKey) { m.Name = "other" }), want: hierarchy.ErrAlreadyExists},
		{name: "bad name", c: createKey("acme", "a/b"), want: hierarchy.ErrInvalidArgument},
		{name: "no ID", c: with(createKey("acme", "x"), getKey, func(m *commandpb.CreateKey) { m.KeyId = nil }), want: hierarchy.ErrInvalidArgument},
		{name: "rotated too often", c: with(createKey("acme", "x"), getKey, func(m *commandpb.CreateKey) { m.RotateEvery = int64(time.Minute) }), want: hierarchy.ErrInvalidArgument, words: "1h"},
		{name: "rotated too seldom", c: with(createKey("acme", "x"), getKey, func(m *commandpb.CreateKey) { m.RotateEvery = int64(state.MaxRotateEvery) + 1 }), want: hierarchy.ErrInvalidArgument, words: "3650 days"},
		{name: "negative period", c: with(createKey("acme", "x"), getKey, func(m *commandpb.CreateKey) { m.RotateEvery = -1 }), want: hierarchy.ErrInvalidArgument},
		{name: "unknown tenant", c: createKey("nobody", "x"), want: hierarchy.ErrNotFound},
		{name: "disabled tenant", c: createKey("globex", "x"), want: hierarchy.ErrTenantDisabled, words: "enable it first"},
	},
	"rotate_key": {
		{name: "ok", c: rotate("acme", "orders", 2)},
		{name: "two propose the same", before: []*commandpb.Command{rotate("acme", "orders", 2), minted("acme", "orders", 3)}, c: rotate("acme", "orders", 2), want: hierarchy.ErrFailedPrecondition, words: "3 and not 2"},
		{name: "newest is not minted", c: rotate("acme", "fresh", 1), want: hierarchy.ErrFailedPrecondition, words: "acme/fresh@1 is not minted yet"},
		{name: "after a compromised one", before: []*commandpb.Command{versionAction("acme", "fresh", 1, compromise)}, c: rotate("acme", "fresh", 1)},
		{name: "no cause", c: with(rotate("acme", "orders", 2), getRotate, func(m *commandpb.RotateKey) { m.Cause = 0 }), want: hierarchy.ErrInvalidArgument},
		{name: "unknown cause", c: with(rotate("acme", "orders", 2), getRotate, func(m *commandpb.RotateKey) { m.Cause = 4 }), want: hierarchy.ErrInvalidArgument},
		{name: "cause beyond a byte", c: with(rotate("acme", "orders", 2), getRotate, func(m *commandpb.RotateKey) { m.Cause = 257 }), want: hierarchy.ErrInvalidArgument},
		{name: "disabled tenant", before: []*commandpb.Command{disable("acme")}, c: rotate("acme", "orders", 2), want: hierarchy.ErrTenantDisabled},
		{name: "unknown key", c: rotate("acme", "nothing", 1), want: hierarchy.ErrNotFound},
		{name: "another tenant's key", c: rotate("globex", "orders", 2), want: hierarchy.ErrNotFound},
	},
	"set_key": {
		{name: "period", c: setKey("acme", "orders", ptr(int64(time.Hour)), nil)},
		{name: "period off", c: setKey("acme", "orders", ptr(int64(0)), nil)},
		{name: "raise", c: setKey("acme", "orders", nil, ptr[uint32](2))},
		{name: "lower", before: []*commandpb.Command{setKey("acme", "orders", nil, ptr[uint32](2))}, c: setKey("acme", "orders", nil, ptr[uint32](1))},
		{name: "beyond the active", c: setKey("acme", "orders", nil, ptr[uint32](3)), want: hierarchy.ErrInvalidArgument, words: "from 1 to 2"},
		{name: "to one that is not minted", before: []*commandpb.Command{rotate("acme", "orders", 2)}, c: setKey("acme", "orders", nil, ptr[uint32](3)), want: hierarchy.ErrInvalidArgument},
		{name: "zero", c: setKey("acme", "orders", nil, ptr[uint32](0)), want: hierarchy.ErrInvalidArgument},
		{name: "bad period", c: setKey("acme", "orders", ptr(int64(1)), nil), want: hierarchy.ErrInvalidArgument},
		{name: "one good, one bad", c: setKey("acme", "orders", ptr(int64(time.Hour)), ptr[uint32](9)), want: hierarchy.ErrInvalidArgument},
		{name: "nothing", c: setKey("acme", "orders", nil, nil), want: hierarchy.ErrInvalidArgument},
		{name: "unknown", c: setKey("acme", "nothing", nil, ptr[uint32](1)), want: hierarchy.ErrNotFound},
	},
	"set_version_state": {
		{name: "suspend the active", c: versionAction("acme", "orders", 2, suspend)},
		{name: "suspend the deactivated", c: versionAction("acme", "orders", 1, suspend)},
		{name: "suspend again", before: []*commandpb.Command{versionAction("acme", "orders", 1, suspend)}, c: versionAction("acme", "orders", 1, suspend)},
		{name: "suspend the pre-active", c: versionAction("acme", "fresh", 1, suspend), want: hierarchy.ErrFailedPrecondition, words: "compromise it"},
		{name: "resume", before: []*commandpb.Command{versionAction("acme", "orders", 2, suspend)}, c: versionAction("acme", "orders", 2, resume)},
		{name: "resume the active", c: versionAction("acme", "orders", 2, resume)},
		{name: "resume the compromised", before: []*commandpb.Command{versionAction("acme", "orders", 2, compromise)}, c: versionAction("acme", "orders", 2, resume), want: hierarchy.ErrFailedPrecondition, words: "acme/orders@2 is compromised"},
		{name: "resume the pre-active", c: versionAction("acme", "fresh", 1, resume), want: hierarchy.ErrFailedPrecondition},
		{name: "compromise", c: versionAction("acme", "orders", 1, compromise)},
		{name: "compromise the suspended", before: []*commandpb.Command{versionAction("acme", "orders", 1, suspend)}, c: versionAction("acme", "orders", 1, compromise)},
		{name: "no action", c: versionAction("acme", "orders", 1, 0), want: hierarchy.ErrInvalidArgument},
		{name: "unknown action", c: versionAction("acme", "orders", 1, 4), want: hierarchy.ErrInvalidArgument},
		{name: "unknown version", c: versionAction("acme", "orders", 3, suspend), want: hierarchy.ErrNotFound, words: "acme/orders@3"},
		{name: "version zero", c: versionAction("acme", "orders", 0, suspend), want: hierarchy.ErrNotFound},
		{name: "long reason", c: with(versionAction("acme", "orders", 1, suspend), getVersion, func(m *commandpb.SetVersionState) { m.Reason = long }), want: hierarchy.ErrInvalidArgument},
	},
	"record_minted": {
		{name: "ok", c: minted("acme", "fresh", 1)},
		{name: "the same again", c: minted("acme", "orders", 2)},
		{name: "of a disabled tenant", before: []*commandpb.Command{disable("acme")}, c: minted("acme", "fresh", 1)},
		{name: "another check value", c: with(minted("acme", "orders", 2), getMinted, func(m *commandpb.RecordMinted) { m.CheckValue = []byte{9, 9, 9} }), want: hierarchy.ErrFailedPrecondition, words: "two keys"},
		{name: "another object", c: with(minted("acme", "fresh", 1), getMinted, func(m *commandpb.RecordMinted) { m.ObjectId = objectOf("acme", "orders", 1, 1) }), want: hierarchy.ErrInvalidArgument},
		{name: "another attempt", c: mintedAt("acme", "fresh", 1, 2), want: hierarchy.ErrFailedPrecondition, words: "attempt 1"},
		{name: "an attempt given up", before: []*commandpb.Command{restart("acme", "fresh", 1, 2)}, c: minted("acme", "fresh", 1), want: hierarchy.ErrFailedPrecondition, words: "attempt 2"},
		{name: "another region", c: with(minted("acme", "fresh", 1), getMinted, func(m *commandpb.RecordMinted) { m.RegionId = id("elsewhere") }), want: hierarchy.ErrNotFound},
		{name: "short object ID", c: with(minted("acme", "fresh", 1), getMinted, func(m *commandpb.RecordMinted) { m.ObjectId = badID }), want: hierarchy.ErrInvalidArgument},
		{name: "no check value", c: with(minted("acme", "fresh", 1), getMinted, func(m *commandpb.RecordMinted) { m.CheckValue = nil }), want: hierarchy.ErrInvalidArgument},
		{name: "unknown version", c: minted("acme", "fresh", 2), want: hierarchy.ErrNotFound},
	},
	"restart_minting": {
		{name: "ok", c: restart("acme", "fresh", 1, 2)},
		{name: "the present attempt", c: restart("acme", "fresh", 1, 1), want: hierarchy.ErrFailedPrecondition},
		{name: "one too far", c: restart("acme", "fresh", 1, 3), want: hierarchy.ErrFailedPrecondition},
		{name: "minted", c: restart("acme", "orders", 2, 2), want: hierarchy.ErrFailedPrecondition, words: "is active"},
		{name: "unknown", c: restart("acme", "fresh", 2, 2), want: hierarchy.ErrNotFound},
	},
	"create_service": {
		{name: "ok", c: createService("new", ptr[uint32](7), nil)},
		{name: "root", c: createService("new", ptr[uint32](0), nil)},
		{name: "same uid, with a gid", c: createService("new", ptr[uint32](1000), ptr[uint32](5))},
		{name: "name taken", c: createService("web", ptr[uint32](7), nil), want: hierarchy.ErrAlreadyExists},
		{name: "match taken", c: createService("new", ptr[uint32](1000), nil), want: hierarchy.ErrAlreadyExists, words: "billing"},
		{name: "matches everybody", c: createService("new", nil, nil), want: hierarchy.ErrInvalidArgument},
		{name: "bad name", c: createService("", ptr[uint32](7), nil), want: hierarchy.ErrInvalidArgument},
	},
	"delete_service": {
		{name: "ok", c: deleteService("billing")},
		{name: "and made anew for another", before: []*commandpb.Command{deleteService("billing")}, c: createService("billing", ptr[uint32](2000), nil)},
		{name: "unknown", c: deleteService("nobody"), want: hierarchy.ErrNotFound},
		{name: "bad name", c: deleteService("*"), want: hierarchy.ErrInvalidArgument},
	},
	"allow_policy": {
		{name: "ok", c: allow("web", "acme/*")},
		{name: "replace", c: allow("billing", "acme/orders", &commandpb.RequiredContext{Key: "k"})},
		{name: "unknown service", c: allow("nobody", "acme/*"), want: hierarchy.ErrNotFound},
		{name: "bad pattern", c: allow("web", "acme*"), want: hierarchy.ErrInvalidArgument},
		{name: "no operation", c: with(allow("web", "acme/*"), getRule, func(r *commandpb.Rule) { r.Ops = 0 }), want: hierarchy.ErrInvalidArgument},
		{name: "unknown operation", c: with(allow("web", "acme/*"), getRule, func(r *commandpb.Rule) { r.Ops = 1 << 7 }), want: hierarchy.ErrInvalidArgument},
		{name: "operation beyond a byte", c: with(allow("web", "acme/*"), getRule, func(r *commandpb.Rule) { r.Ops = 1<<8 | 1 }), want: hierarchy.ErrInvalidArgument},
		{name: "required twice", c: allow("web", "acme/*", &commandpb.RequiredContext{Key: "k"}, &commandpb.RequiredContext{Key: "k"}), want: hierarchy.ErrInvalidArgument},
		{name: "no rule", c: &commandpb.Command{Body: &commandpb.Command_AllowPolicy{AllowPolicy: &commandpb.AllowPolicy{}}}, want: hierarchy.ErrInvalidArgument},
		{name: "limits", c: limitRule("web", "acme/*", perSecond(1), perHour(3))},
		{name: "two short limits", c: limitRule("web", "acme/*", perSecond(1), perSecond(2)), want: hierarchy.ErrInvalidArgument, words: "1/s and 2/s"},
		{name: "a window of another length", c: limitRule("web", "acme/*", &commandpb.Limit{Count: 1, Per: int64(time.Hour) + 1}), want: hierarchy.ErrInvalidArgument},
	},
	"revoke_policy": {
		{name: "ok", c: revoke("billing", "*/orders")},
		{name: "no such rule", c: revoke("billing", "*/*"), want: hierarchy.ErrNotFound},
		{name: "another service's", c: revoke("web", "*/orders"), want: hierarchy.ErrNotFound},
		{name: "unknown service", c: revoke("nobody", "*/orders"), want: hierarchy.ErrNotFound},
		{name: "bad pattern", c: revoke("billing", "orders"), want: hierarchy.ErrInvalidArgument},
	},
	"reserve_wraps": {
		{name: "ok", c: reserve("acme", "orders", 2, state.MaxReservation)},
		{name: "none", c: reserve("acme", "orders", 2, 0), want: hierarchy.ErrInvalidArgument},
		{name: "too many at once", c: reserve("acme", "orders", 2, state.MaxReservation+1), want: hierarchy.ErrInvalidArgument},
		{name: "deactivated", c: reserve("acme", "orders", 1, 1), want: hierarchy.ErrVersionDisabled, words: "acme/orders@1 is deactivated"},
		{name: "not minted", c: reserve("acme", "fresh", 1, 1), want: hierarchy.ErrFailedPrecondition},
		{name: "disabled tenant", before: []*commandpb.Command{disable("acme")}, c: reserve("acme", "orders", 2, 1), want: hierarchy.ErrTenantDisabled},
		{name: "unknown node", c: with(reserve("acme", "orders", 2, 1), getReserve, func(m *commandpb.ReserveWraps) { m.NodeId = id("stranger") }), want: hierarchy.ErrNotFound},
		{name: "another region", c: with(reserve("acme", "orders", 2, 1), getReserve, func(m *commandpb.ReserveWraps) { m.RegionId = id("elsewhere") }), want: hierarchy.ErrInvalidArgument},
		{name: "bad region", c: with(reserve("acme", "orders", 2, 1), getReserve, func(m *commandpb.ReserveWraps) { m.RegionId = nil }), want: hierarchy.ErrInvalidArgument},
		{name: "unknown key", c: reserve("acme", "nothing", 1, 1), want: hierarchy.ErrNotFound},
	},
	"return_wraps": {
		{name: "all", c: giveBack("acme", "orders", 2, 1<<16)},
		{name: "some", c: giveBack("acme", "orders", 2, 5)},
		{name: "of a disabled tenant", before: []*commandpb.Command{disable("acme")}, c: giveBack("acme", "orders", 2, 5)},
		{name: "more than was reserved", c: giveBack("acme", "orders", 2, 1<<16+1), want: hierarchy.ErrInvalidArgument},
		{name: "twice", before: []*commandpb.Command{giveBack("acme", "orders", 2, 1)}, c: giveBack("acme", "orders", 2, 1), want: hierarchy.ErrInvalidArgument},
		{name: "never reserved", c: giveBack("acme", "orders", 1, 1), want: hierarchy.ErrInvalidArgument},
		{name: "another node", c: with(giveBack("acme", "orders", 2, 1), getReturn, func(m *commandpb.ReturnWraps) { m.NodeId = id("stranger") }), want: hierarchy.ErrNotFound},
		{name: "none", c: giveBack("acme", "orders", 2, 0), want: hierarchy.ErrInvalidArgument},
	},
	"reserve_uses":         usesSteps,
	"invite_node":          inviteSteps,
	"join_node":            joinSteps,
	"set_node":             setNodeSteps,
	"remove_node":          removeSteps,
	"set_minting_node":     mintingSteps,
	"raise_feature_level":  raiseSteps,
	"restore_records":      restoreSteps,
	"register_incarnation": registerSteps,
	"complete_fence":       completeSteps,
	"retire_tombstone":     retireSteps,
	"anchor_audit": {
		{name: "on", c: anchor(8, 2)},
		{name: "the same again", c: anchor(7, 1)},
		{name: "back", c: anchor(6, 1), want: hierarchy.ErrFailedPrecondition, words: "records are gone"},
		{name: "forked", c: anchor(7, 2), want: hierarchy.ErrFailedPrecondition, words: "another record 7"},
		{name: "short head", c: with(anchor(8, 1), getAnchor, func(m *commandpb.AnchorAudit) { m.Head = badID }), want: hierarchy.ErrInvalidArgument},
		{name: "no signature", c: with(anchor(8, 1), getAnchor, func(m *commandpb.AnchorAudit) { m.Signature = nil }), want: hierarchy.ErrInvalidArgument},
		{name: "unknown node", c: with(anchor(8, 1), getAnchor, func(m *commandpb.AnchorAudit) { m.NodeId = id("stranger") }), want: hierarchy.ErrNotFound},
	},
}

func TestCommands(t *testing.T) {
	t.Parallel()
	for kind, steps := range commands {
		for _, step := range steps {
			t.Run(kind+"/"+step.name, func(t *testing.T) {
				m := populated(t)
				for _, c := range step.before {
					m.do(t, proto.Clone(c).(*commandpb.Command))
				}
				before := m.s
				res := m.command(proto.Clone(step.c).(*commandpb.Command))
				if !errors.Is(res.Err, step.want) || (step.want == nil) != (res.Err == nil) {
					t.Fatalf("got error %v, want %v", res.Err, step.want)
				}
				if step.want != nil && !strings.Contains(res.Err.Error(), step.words) {
					t.Errorf("error %q does not say %q", res.Err, step.words)
				}
				if step.want != nil && m.s.Revision() != before.Revision() {
					t.Error("a refused command woke who waits for something to do")
				}
				if res.Index != m.s.Index() {
					t.Errorf("result is of index %d, the state of %d", res.Index, m.s.Index())
				}
				check(t, m.s)
			})
		}
	}
}

// A kind of command without a test would be a kind whose refusals nobody has thought of.
func TestEveryCommandIsTested(t *testing.T) {
	fields := (&commandpb.Command{}).ProtoReflect().Descriptor().Oneofs().ByName("body").Fields()
	for i := range fields.Len() {
		name := string(fields.Get(i).Name())
		steps := commands[name]
		if len(steps) == 0 {
			t.Errorf("command %s has no test", name)
		}
		taken := slices.ContainsFunc(steps, func(s step) bool { return s.want == nil })
		refused := slices.ContainsFunc(steps, func(s step) bool { return s.want != nil })
		if name != "init_cluster" && !taken || name != "tick" && !refused {
			t.Errorf("command %s: the tests do not show both that it is taken and that it is refused", name)
		}
		// The name of the case is that of what is in it.
		for _, s := range steps {
			if which := s.c.ProtoReflect().WhichOneof(fields.Get(i).ContainingOneof()); string(which.Name()) != name && s.before == nil {
				t.Errorf("step %s/%s is of command %s", name, s.name, which.Name())
			}
		}
	}
}

func TestInitCluster(t *testing.T) {
	for name, change := range map[string]func(*commandpb.InitCluster){
		"no cluster ID":        func(m *commandpb.InitCluster) { m.ClusterId = nil },
		"no region":            func(m *commandpb.InitCluster) { m.Region = nil },
		"no node":              func(m *commandpb.InitCluster) { m.Node = nil },
		"region bad name":      func(m *commandpb.InitCluster) { m.Region.Name = "EU" },
		"region no identity":   func(m *commandpb.InitCluster) { m.Region.Identity = nil },
		"region huge identity": func(m *commandpb.InitCluster) { m.Region.Identity = make([]byte, 2000) },
		"region no role":       func(m *commandpb.InitCluster) { m.Region.Role = 0 },
		"region unknown role":  func(m *commandpb.InitCluster) { m.Region.Role = 17 },
		"region role beyond":   func(m *commandpb.InitCluster) { m.Region.Role = 257 },
		"region is a replica":  func(m *commandpb.InitCluster) { m.Region.Role = commandpb.RegionRole_REGION_ROLE_REPLICA },
		"region bad KDF":       func(m *commandpb.InitCluster) { m.Region.Kdf = "SHA 256" },
		"another mints":        func(m *commandpb.InitCluster) { m.Region.MintingNode = id("other") },
		"nobody mints":         func(m *commandpb.InitCluster) { m.Region.MintingNode = nil },
		"node of no region":    func(m *commandpb.InitCluster) { m.Node.RegionId = nil },
		"node of another":      func(m *commandpb.InitCluster) { m.Node.RegionId = id("other") },
		"node no voter":        func(m *commandpb.InitCluster) { m.Node.Voter = false },
		"node bad address":     func(m *commandpb.InitCluster) { m.Node.Address = "somewhere" },
		"node has an identity": func(m *commandpb.InitCluster) { m.Node.Identity = []byte("k") },
		"node bad name":        func(m *commandpb.InitCluster) { m.Node.Name = "-" },
	} {
		t.Run(name, func(t *testing.T) {
			m := &machine{state.New(), start}
			body := initCluster()
			change(body)
			if res := m.command(&commandpb.Command{Body: &commandpb.Command_InitCluster{InitCluster: body}}); !errors.Is(res.Err, hierarchy.ErrInvalidArgument) {
				t.Errorf("got error %v, want %v", res.Err, hierarchy.ErrInvalidArgument)
			}
			if m.s.Initialised() {
				t.Error("the cluster is initialised nevertheless")
			}
		})
	}
	t.Run("everything else comes later", func(t *testing.T) {
		m := &machine{state.New(), start}
		if res := m.command(createTenant("acme")); !errors.Is(res.Err, hierarchy.ErrFailedPrecondition) {
			t.Errorf("got error %v, want %v", res.Err, hierarchy.ErrFailedPrecondition)
		}
	})
}

func TestBounds(t *testing.T) {
	t.Parallel()
	t.Run("keys of a tenant", func(t *testing.T) {
		m := initialised(t)
		m.do(t, createTenant("acme"))
		for i := range state.MaxKeysPerTenant {
			m.do(t, createKey("acme", fmt.Sprint("k", i)))
		}
		if res := m.command(createKey("acme", "one-more")); !errors.Is(res.Err, hierarchy.ErrCapacity) {
			t.Errorf("got error %v, want %v", res.Err, hierarchy.ErrCapacity)
		}
	})
	t.Run("rules of a service", func(t *testing.T) {
		m := initialised(t)
		m.do(t, createService("web", ptr[uint32](1), nil))
		for i := range state.MaxRulesPerService {
			m.do(t, allow("web", fmt.Sprintf("acme/k%d", i)))
		}
		if res := m.command(allow("web", "acme/*")); !errors.Is(res.Err, hierarchy.ErrCapacity) {
			t.Errorf("got error %v, want %v", res.Err, hierarchy.ErrCapacity)
		}
		m.do(t, allow("web", "acme/k0", &commandpb.RequiredContext{Key: "k"})) // replaces
	})
	t.Run("seals of a version", func(t *testing.T) {
		m := populated(t)
		m.do(t, giveBack("acme", "orders", 2, 1<<16))
		woken := 0
		for i := range uint64(state.MaxWraps / state.MaxReservation) {
			before := m.s.Revision()
			m.do(t, reserve("acme", "orders", 2, state.MaxReservation))
			if m.s.Revision() != before {
				woken++
				if got := (i + 1) * state.MaxReservation; got != state.RotateAtWraps {
					t.Errorf("woken at %d seals, want %d", got, uint64(state.RotateAtWraps))
				}
			}
		}
		if woken != 1 {
			t.Errorf("woken %d times on the way, want once", woken)
		}
		if res := m.command(reserve("acme", "orders", 2, 1)); !errors.Is(res.Err, hierarchy.ErrCapacity) || !strings.Contains(res.Err.Error(), "rotate") {
			t.Errorf("got error %v, want %v", res.Err, hierarchy.ErrCapacity)
		}
	})
}

// version reads one back.
func version(t *testing.T, m *machine, tenant, key string, n uint32) *state.Version {
	t.Helper()
	k, ok := m.s.Key(tenantID(tenant), keyID(key))
	if !ok {
		t.Fatalf("key %s/%s is gone", tenant, key)
	}
	v, ok := k.Version(n)
	if !ok {
		t.Fatalf("version %d is gone", n)
	}
	return v
}

func wantState(t *testing.T, m *machine, n uint32, want hierarchy.VersionState) {
	t.Helper()
	if got := version(t, m, "acme", "orders", n).State; got != want {
		t.Errorf("version %d is %s, want %s", n, got, want)
	}
}

func TestVersionLife(t *testing.T) {
	m := populated(t)
	wantState(t, m, 1, hierarchy.Deactivated)
	wantState(t, m, 2, hierarchy.Active)

	// Suspended while a newer one takes over, it comes back as what it is due by then.
	m.do(t, versionAction("acme", "orders", 2, suspend))
	m.do(t, rotate("acme", "orders", 2))
	wantState(t, m, 3, hierarchy.PreActive)
	m.do(t, minted("acme", "orders", 3))
	wantState(t, m, 3, hierarchy.Active)
	wantState(t, m, 2, hierarchy.Suspended)
	m.do(t, versionAction("acme", "orders", 2, resume))
	wantState(t, m, 2, hierarchy.Deactivated)

	// Suspended and resumed with no newer one, it is active again.
	m.do(t, versionAction("acme", "orders", 3, suspend))
	if k, _ := m.s.Key(tenantID("acme"), keyID("orders")); k != nil {
		if v, ok := k.Active(); ok {
			t.Errorf("version %d is active while the newest is suspended", v.Number)
		}
	}
	m.do(t, versionAction("acme", "orders", 3, resume))
	wantState(t, m, 3, hierarchy.Active)

	// A compromised one that was suspended is so again.
	m.do(t, versionAction("acme", "orders", 1, compromise))
	m.do(t, versionAction("acme", "orders", 1, suspend))
	m.do(t, versionAction("acme", "orders", 1, resume))
	wantState(t, m, 1, hierarchy.Compromised)

	// One that was compromised before it was minted never becomes active.
	m.do(t, rotate("acme", "orders", 3))
	m.do(t, versionAction("acme", "orders", 4, compromise))
	m.do(t, minted("acme", "orders", 4))
	wantState(t, m, 4, hierarchy.Compromised)
	wantState(t, m, 3, hierarchy.Active)
}

func TestRestartedMinting(t *testing.T) {
	m := populated(t)
	m.do(t, restart("acme", "fresh", 1, 2))
	m.do(t, mintedAt("acme", "fresh", 1, 2))
	v := version(t, m, "acme", "fresh", 1)
	if r, ok := v.Region(regionID); !ok || v.State != hierarchy.Active || string(r.Object[:]) != string(objectOf("acme", "fresh", 1, 2)) {
		t.Errorf("got %+v, want it active with the object of attempt 2", v)
	}
}

func TestDisableKeepsTheFirstReason(t *testing.T) {
	m := populated(t)
	m.do(t, disable("acme"))
	first, _ := m.s.Tenant(tenantID("acme"))
	m.do(t, setTenantState("acme", commandpb.TenantState_TENANT_STATE_DISABLED, "another"))
	if again, _ := m.s.Tenant(tenantID("acme")); again != first {
		t.Errorf("got %+v, want the tenant unchanged: %+v", again, first)
	}
}

// An anchor goes back only where an operator accepted that records are gone.
func TestAnchorAfterAnAcceptedLoss(t *testing.T) {
	m := initialised(t)
	if r := m.command(anchor(100, 1)); r.Err != nil {
		t.Fatal(r.Err)
	}
	if r := m.command(anchor(7, 2)); !errors.Is(r.Err, hierarchy.ErrFailedPrecondition) {
		t.Fatalf("an anchor that goes back: %v", r.Err)
	}
	lost := anchor(7, 2)
	lost.GetAnchorAudit().AcceptedLoss = "the disk is gone"
	if r := m.command(lost); r.Err != nil {
		t.Fatal(r.Err)
	}
	if r := m.command(anchor(8, 3)); r.Err != nil {
		t.Fatalf("the new journal goes on: %v", r.Err)
	}
}
