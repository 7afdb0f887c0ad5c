package softhsmtests

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/softhsm-tests/history"
	"github.com/kekd/kekd/unix-socket-api/client"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

// caller calls nodes, and takes down what they say.
type caller struct {
	t        *testing.T
	id       int
	all      *members
	record   *history.Recorder
	random   *rand.Rand
	uses     map[string]*client.Client // of kekd.sock, by the node's name
	tenants  []*callersTenant
	values   *atomic.Uint64 // the last that was set
	commands *atomic.Int64  // that were acknowledged
}

// callersTenant is one that callers work on.
type callersTenant struct {
	name                string
	envelope, plaintext []byte // of its key
}

const (
	tryTime = 2 * time.Second
	tries   = 8
	// service is that of all callers, which no test deletes.
	service = "me"
	// valueBase is added to a value to make a limit that nobody reaches.
	valueBase = 1_000_000
)

// once is one try at a node. What it knows of a read or of an index is in the operation.
type once func(ctx context.Context, m *member, id []byte, o *history.Operation) error

var requests = map[history.Kind]once{
	history.Create: func(ctx context.Context, m *member, id []byte, o *history.Operation) error {
		r, err := m.admin.CreateTenant(ctx, &kekdv1.CreateTenantRequest{IdempotencyId: id, Name: o.Tenant})
		o.Index = r.GetIndex()
		return err
	},
	history.Disable: func(ctx context.Context, m *member, id []byte, o *history.Operation) error {
		r, err := m.admin.DisableTenant(ctx, &kekdv1.DisableTenantRequest{IdempotencyId: id, Name: o.Tenant, Reason: "test"})
		o.Index = r.GetIndex()
		return err
	},
	history.Enable: func(ctx context.Context, m *member, id []byte, o *history.Operation) error {
		r, err := m.admin.EnableTenant(ctx, &kekdv1.EnableTenantRequest{IdempotencyId: id, Name: o.Tenant, Reason: "test"})
		o.Index = r.GetIndex()
		return err
	},
	history.Set: func(ctx context.Context, m *member, id []byte, o *history.Operation) error {
		r, err := m.admin.SetTenant(ctx, &kekdv1.SetTenantRequest{IdempotencyId: id, Name: o.Tenant,
			Limits: &kekdv1.Limits{Limits: []*kekdv1.Limit{{Count: valueBase + o.Value, Per: int64(time.Minute)}}}})
		o.Index = r.GetIndex()
		return err
	},
	history.Allow: func(ctx context.Context, m *member, id []byte, o *history.Operation) error {
		_, err := m.admin.AllowPolicy(ctx, &kekdv1.AllowPolicyRequest{IdempotencyId: id, Rule: &kekdv1.Rule{Service: service, Pattern: o.Tenant + "/*", Ops: allOps}})
		return err
	},
	history.Revoke: func(ctx context.Context, m *member, id []byte, o *history.Operation) error {
		r, err := m.admin.RevokePolicy(ctx, &kekdv1.RevokePolicyRequest{IdempotencyId: id, Service: service, Pattern: o.Tenant + "/*"})
		o.Index = r.GetIndex()
		return err
	},
	history.Read: func(ctx context.Context, m *member, _ []byte, o *history.Operation) error {
		r, err := m.admin.GetTenant(ctx, &kekdv1.GetTenantRequest{Name: o.Tenant})
		if err != nil {
			return err
		}
		o.Index, o.Seen = r.Index, &history.Seen{State: r.State}
		if len(r.Limits) > 0 {
			o.Seen.Value = r.Limits[0].Count - valueBase
		}
		return nil
	},
}

// command asks for a change at one node after the other, under one ID, until it is known what became of
// it, or for too long.
func (c *caller) command(o history.Operation) {
	id := hierarchy.NewID()
	o.Client, o.ID = c.id, id.String()
	pending := c.record.Begin(o)
	uncertain := false
	for o.Tries = 1; ; o.Tries++ {
		m := c.all.nodes[c.random.IntN(len(c.all.nodes))]
		err := c.try(m, id[:], &o)
		var known bool
		if o.Outcome, known = outcomeOf(o.Kind, err, uncertain); known || o.Tries == tries || c.t.Context().Err() != nil {
			break
		}
		uncertain = uncertain || o.Outcome == history.Unknown
	}
	pending.End(o)
	if o.Outcome == history.OK {
		c.commands.Add(1)
	}
}

// try asks one node, and takes down which run of it has answered, if only one can have.
func (c *caller) try(m *member, id []byte, o *history.Operation) error {
	ctx, cancel := context.WithTimeout(context.Background(), tryTime)
	defer cancel()
	o.Node, o.Run, o.Code, o.Index = m.Name, m.currentRun(), "", 0
	err := requests[o.Kind](ctx, m, id, o)
	if o.Run != m.currentRun() {
		o.Node, o.Run = "", 0
	}
	if err != nil {
		o.Code = hierarchy.Code(err)
	}
	return err
}

// outcomeOf is what an answer to a command means after others that may have left its outcome open, and
// whether there is no sense in asking again.
func outcomeOf(kind history.Kind, err error, uncertain bool) (o history.Outcome, known bool) {
	refused := history.Refused
	if uncertain {
		refused = history.Unknown
	}
	switch {
	case err == nil:
		return history.OK, true
	case kind == history.Create && errors.Is(err, hierarchy.ErrAlreadyExists), kind == history.Revoke && errors.Is(err, hierarchy.ErrNotFound):
		return history.Refused, true // by the state, also of what was asked before
	case kind == history.Allow && errors.Is(err, hierarchy.ErrNotFound), errors.Is(err, hierarchy.ErrFailedPrecondition):
		return history.OK, true // it took effect, and was undone since: the answer says so, without the index
	case errors.Is(err, hierarchy.ErrNotFound):
		return refused, !uncertain // by the copy of one node
	case errors.Is(err, hierarchy.ErrStale):
		return refused, false // no leader was found
	}
	return history.Unknown, false
}

// read shows a tenant as a node has it.
func (c *caller) read(tenant string, m *member, fresh bool) {
	o := history.Operation{Client: c.id, Kind: history.Read, Tenant: tenant, Tries: 1, Fresh: fresh}
	pending := c.record.Begin(o)
	switch err := c.try(m, nil, &o); {
	case err == nil:
		o.Outcome = history.OK
	case errors.Is(err, hierarchy.ErrNotFound):
		o.Outcome = history.Refused
	default:
		o.Outcome = history.Unknown
		if fresh {
			c.t.Errorf("read of %s at %s: %v", tenant, m.Name, err)
		}
	}
	pending.End(o)
}

// use wraps or unwraps at a node. What is opened has to be what was sealed.
func (c *caller) use(tenant *callersTenant, m *member, kind history.Kind) {
	o := history.Operation{Client: c.id, Kind: kind, Tenant: tenant.name, Tries: 1, Node: m.Name, Run: m.currentRun()}
	ctx, cancel := context.WithTimeout(context.Background(), tryTime)
	defer cancel()
	pending := c.record.Begin(o)
	var err error
	if kind == history.Wrap {
		_, err = c.uses[m.Name].Wrap(ctx, tenant.name+"/orders", tenant.plaintext, client.Options{})
	} else {
		var r client.Result
		if r, err = c.uses[m.Name].Unwrap(ctx, tenant.envelope, client.Options{}); err == nil && string(r.Plaintext) != string(tenant.plaintext) {
			c.t.Errorf("%s opened an envelope of %s, and it is another data key", m.Name, tenant.name)
		}
	}
	if o.Run != m.currentRun() {
		o.Node, o.Run = "", 0
	}
	o.Outcome, o.Code = history.OK, hierarchy.Code(err)
	if err != nil {
		o.Outcome = history.Refused
	}
	pending.End(o)
}

// work does things at random until ctx ends.
func (c *caller) work(ctx context.Context) {
	commands := []history.Kind{history.Disable, history.Enable, history.Enable, history.Set, history.Set, history.Allow, history.Allow, history.Revoke, history.Create}
	for ctx.Err() == nil {
		tenant := c.tenants[c.random.IntN(len(c.tenants))]
		m := c.all.nodes[c.random.IntN(len(c.all.nodes))]
		switch dice := c.random.IntN(100); {
		case dice < 35:
			o := history.Operation{Kind: commands[c.random.IntN(len(commands))], Tenant: tenant.name}
			if o.Kind == history.Set {
				o.Value = c.values.Add(1)
			}
			c.command(o)
		case dice < 65:
			c.read(tenant.name, m, false)
		case dice < 70:
			c.use(tenant, m, history.Wrap)
		default:
			c.use(tenant, m, history.Unwrap)
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(c.random.Int64N(int64(20 * time.Millisecond)))):
		}
	}
}
