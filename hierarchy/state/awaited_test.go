package state_test

import (
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/state"
)

// Whoever asks for a closing waits for its fence, and whoever asks again for that of who was first.
func TestAwaited(t *testing.T) {
	for name, c := range map[string]struct {
		before []*commandpb.Command // of which the last may have a fence
		c      *commandpb.Command
		waits  int // index of the command in before that it waits for, from the end; 0: for itself; -1: for nothing
	}{
		"disable":                   {c: disable("acme")},
		"disable again":             {before: []*commandpb.Command{disable("acme")}, c: disable("acme"), waits: 1},
		"disable what was restored": {before: []*commandpb.Command{restoreRecords(tenantRecord("acme", func(m *commandpb.Tenant) { m.State = commandpb.TenantState_TENANT_STATE_DISABLED }))}, c: disable("acme"), waits: 1},
		"disable another":           {before: []*commandpb.Command{disable("globex")}, c: disable("acme")},
		"enable":                    {before: []*commandpb.Command{disable("acme")}, c: enable("acme"), waits: -1},
		"enable again":              {before: []*commandpb.Command{revoke("web", "acme/*")}, c: enable("acme"), waits: -1},
		"suspend again":             {before: []*commandpb.Command{versionAction("acme", "orders", 2, suspend)}, c: versionAction("acme", "orders", 2, suspend), waits: 1},
		"resume":                    {before: []*commandpb.Command{versionAction("acme", "orders", 2, suspend)}, c: versionAction("acme", "orders", 2, resume), waits: -1},
		"min_unwrap_version again":  {before: []*commandpb.Command{setKey("acme", "orders", nil, ptr[uint32](2))}, c: setKey("acme", "orders", nil, ptr[uint32](2)), waits: 1},
		"rotate_every":              {before: []*commandpb.Command{disable("acme")}, c: setKey("acme", "orders", ptr(int64(49*time.Hour)), nil), waits: -1},
		"lower":                     {c: setTenant("acme", ptr(int64(time.Hour)))},
		"lower again":               {before: []*commandpb.Command{setTenant("acme", ptr(int64(time.Hour)))}, c: setTenant("acme", ptr(int64(time.Hour))), waits: 1},
		"raise":                     {before: []*commandpb.Command{disable("acme")}, c: setTenant("acme", ptr(int64(9*time.Hour))), waits: -1},
		"raise what was lowered":    {before: []*commandpb.Command{setTenant("acme", ptr(int64(time.Hour)))}, c: setTenant("acme", ptr(int64(3*time.Hour))), waits: -1},
		"limits":                    {before: []*commandpb.Command{setTenant("acme", ptr(int64(time.Hour)))}, c: limitTenant("acme", perDay(1)), waits: -1},
		"widen":                     {before: []*commandpb.Command{disable("acme")}, c: with(allow("web", "acme/*"), getRule, func(r *commandpb.Rule) { r.Ops = 0xf }), waits: -1},
		"revoke":                    {before: []*commandpb.Command{disable("acme")}, c: revoke("web", "acme/*")},
	} {
		t.Run(name, func(t *testing.T) {
			m := inHours(t)
			for _, c := range c.before {
				m.do(t, proto.Clone(c).(*commandpb.Command))
			}
			closes := m.s.Closes(c.c)
			m.do(t, c.c)
			own, made := m.s.Fence(m.s.Index())
			if made != (closes > 0) || made && closes != own.Wait {
				t.Errorf("it would close for %v, and there is %+v", closes, own)
			}
			f := m.s.Awaited(c.c, m.s.Index())
			switch {
			case c.waits < 0:
				if f != nil {
					t.Errorf("it waits for %+v", f)
				}
			case f == nil || f.Index != m.s.Index()-uint64(c.waits):
				t.Errorf("it waits for %+v at index %d", f, m.s.Index())
			}
			if f != nil {
				m.do(t, complete(f.Index))
				if f := m.s.Awaited(c.c, m.s.Index()-1); f != nil && f.Index != m.s.Index()-2 {
					t.Errorf("when that is complete, it waits for %+v", f)
				}
			}
		})
	}
}

// Of several that are incomplete, a repeated disable waits for all.
func TestAwaitedOfSeveral(t *testing.T) {
	m := inHours(t)
	m.do(t, setTenant("acme", ptr(int64(time.Hour))))
	m.do(t, revoke("billing", "*/orders"))
	m.do(t, disable("acme"))
	last := m.s.Index()
	m.do(t, disable("acme"))
	f := m.s.Awaited(disable("acme"), m.s.Index())
	if f == nil || f.Index != last || f.Wait != 5*time.Hour || len(f.Holders) != len(m.s.Holders()) {
		t.Errorf("got %+v", f)
	}
}

func TestOnlyCloses(t *testing.T) {
	for want, commands := range map[bool][]*commandpb.Command{
		true:  {disable("acme"), versionAction("acme", "orders", 1, suspend), versionAction("acme", "orders", 1, compromise), revoke("web", "acme/*"), deleteService("web"), restoreRecords()},
		false: {enable("acme"), versionAction("acme", "orders", 1, resume), setTenant("acme", ptr(int64(time.Hour))), allow("web", "acme/*"), tick()},
	} {
		for _, c := range commands {
			if state.OnlyCloses(c) != want {
				t.Errorf("%v: it is said that it only closes: %v", c, !want)
			}
		}
	}
}
