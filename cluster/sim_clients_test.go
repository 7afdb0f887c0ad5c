package cluster_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/custody"
	"github.com/kekd/kekd/hierarchy/state"
	"github.com/kekd/kekd/softhsm-tests/history"
)

var simApp = hierarchy.Principal{UID: 1001, GID: 1001, PID: 11}

// simHistory is what clients were told, on the one time line of the bubble.
type simHistory struct {
	began time.Time

	mu     sync.Mutex
	ops    []history.Operation
	closed map[string][]simClosing
	served int // uses that succeeded
}

// simClosing is a time in which nothing may be let through.
type simClosing struct {
	index      uint64
	from, till int64 // the return of the disable, and the call of the next enable; 0: none was called
}

func newSimHistory(began time.Time) *simHistory {
	return &simHistory{began: began, closed: map[string][]simClosing{}}
}

func (h *simHistory) now() int64 { return int64(time.Since(h.began)) + 1 }

func (h *simHistory) add(o history.Operation) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ops = append(h.ops, o)
	if o.Outcome == history.OK && (o.Kind == history.Wrap || o.Kind == history.Unwrap) {
		h.served++
	}
}

// judge finds what must not be: directly, and as every other history of the project is judged.
func (h *simHistory) judge() (found []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, o := range h.ops {
		if o.Outcome != history.OK || o.Kind != history.Wrap && o.Kind != history.Unwrap {
			continue
		}
		for _, c := range h.closed[o.Tenant] {
			// Nothing takes time between the last check and the reply.
			if o.Return > c.from && (c.till == 0 || o.Return < c.till) {
				found = append(found, fmt.Sprintf("the disable at index %d returned at %v, and this was let through: %v", c.index, time.Duration(c.from), o))
			}
		}
	}
	for _, v := range history.Judge(h.history("", 0)) {
		found = append(found, v.String())
	}
	return found
}

func (h *simHistory) history(name string, seed uint64) *history.History {
	return &history.History{Name: name, Seed: seed, Rules: history.Rules{Fenced: true, LastCheck: true}, Operations: h.ops}
}

// save keeps it where the end of the test does not reach.
func (h *simHistory) save(t testing.TB, name string, seed uint64) string {
	path, err := h.history(name, seed).Save(os.Getenv("KEKD_HISTORIES"))
	if err != nil {
		t.Error(err)
	}
	return path
}

// tenant makes one that all nodes can serve.
func (w *simWorld) tenant(by *simRun, name string, staleness time.Duration) {
	object := hierarchy.KEKObjectID(simClusterID, hierarchy.TenantID{ID: hierarchy.ID(id(name))}, hierarchy.KeyID{ID: hierarchy.ID(id(name + "/orders"))}, 1, simRegion, 1)
	uid, call := simApp.UID, w.told.now()
	create := w.must(by, &commandpb.Command{Body: &commandpb.Command_CreateTenant{CreateTenant: &commandpb.CreateTenant{TenantId: id(name), Name: name, MaxStaleness: int64(staleness)}}})
	w.told.add(history.Operation{Kind: history.Create, Tenant: name, Call: call, Return: w.told.now(), Outcome: history.OK, Index: create})
	w.must(by, &commandpb.Command{Body: &commandpb.Command_CreateKey{CreateKey: &commandpb.CreateKey{TenantId: id(name), KeyId: id(name + "/orders"), Name: "orders"}}})
	w.must(by, &commandpb.Command{Body: &commandpb.Command_RecordMinted{RecordMinted: &commandpb.RecordMinted{
		TenantId: id(name), KeyId: id(name + "/orders"), Version: 1, Attempt: 1, RegionId: simRegion.ID[:], ObjectId: object[:], CheckValue: object[:3],
	}}})
	w.must(by, &commandpb.Command{Body: &commandpb.Command_CreateService{CreateService: &commandpb.CreateService{Name: "app", Uid: &uid}}})
	call = w.told.now()
	allow := w.must(by, &commandpb.Command{Body: &commandpb.Command_AllowPolicy{AllowPolicy: &commandpb.AllowPolicy{Rule: &commandpb.Rule{
		Service: "app", Pattern: name + "/*", Ops: uint32(hierarchy.OpWrap | hierarchy.OpUnwrap),
	}}}})
	w.told.add(history.Operation{Kind: history.Allow, Tenant: name, Call: call, Return: w.told.now(), Outcome: history.OK, Index: allow})
	w.mu.Lock()
	defer w.mu.Unlock()
	w.names = append(w.names, name)
}

func (w *simWorld) must(by *simRun, c *commandpb.Command) uint64 {
	res, err := by.node.Load().Propose(w.patience(), c)
	if err != nil && !errors.Is(err, hierarchy.ErrAlreadyExists) {
		w.t.Fatal(err)
	}
	return res.Index
}

// serve has a client beside a run ask it for all tenants, as long as its process lives.
func (w *simWorld) serve(r *simRun) {
	for client := range 2 {
		w.running.Go(func() {
			for r.ctx.Err() == nil {
				w.perhaps(1, w.clients)
				r.awake()
				w.use(r, 10*r.n+client)
			}
		})
	}
}

func (w *simWorld) use(r *simRun, client int) {
	w.mu.Lock()
	names := w.names
	requests := make([]custody.Request, len(names))
	for i, name := range names {
		requests[i] = custody.Request{Op: hierarchy.OpWrap, Key: name + "/orders", Plaintext: make([]byte, simDataKey)}
		if sealed := w.sealed[name]; sealed != nil && w.chance(0.5) {
			requests[i] = custody.Request{Op: hierarchy.OpUnwrap, Envelope: sealed}
		}
	}
	w.mu.Unlock()
	if len(requests) == 0 {
		return
	}
	call := w.told.now()
	responses := make([]custody.Response, len(requests))
	r.custody.Do(context.Background(), simApp, requests, responses)
	if r.ctx.Err() != nil {
		return // the process was killed meanwhile
	}
	now := w.told.now()
	for i, a := range responses {
		o := history.Operation{Client: client, Node: r.machine.name, Run: r.n, Kind: history.Unwrap, Tenant: names[i], Call: call, Return: now, Outcome: history.OK}
		if requests[i].Op == hierarchy.OpWrap {
			o.Kind = history.Wrap
		}
		switch {
		case a.Err == nil && o.Kind == history.Wrap:
			w.mu.Lock()
			w.sealed[names[i]] = a.Envelope
			w.mu.Unlock()
		case errors.Is(a.Err, hierarchy.ErrTenantDisabled), errors.Is(a.Err, hierarchy.ErrPermissionDenied):
			o.Outcome, o.Code = history.Refused, hierarchy.Code(a.Err)
		case errors.Is(a.Err, hierarchy.ErrStale):
			continue // for want of a lease
		case a.Err != nil:
			w.fail("%v: %v", o, a.Err)
			continue
		}
		w.told.add(o)
	}
}

// operator is who disables and enables one tenant, one after the other, at whichever node.
type operator struct {
	*simDice
	w      *simWorld
	tenant string
	wait   time.Duration // how long the tenant is left as it is, at most
	at     *simRun       // whom he asks; nil: whoever it may be
}

func (w *simWorld) operator(tenant string, wait time.Duration) operator {
	return operator{simDice: newSimDice(w.seed, "operator of "+tenant), w: w, tenant: tenant, wait: wait}
}

func (o operator) work(ctx context.Context) {
	for ctx.Err() == nil {
		o.perhaps(1, o.wait)
		o.settings()
		if !o.disable(ctx) {
			return
		}
		o.perhaps(1, o.wait)
		o.enable(ctx)
	}
}

// settings changes max_staleness now and then, and does not wait for that.
func (o operator) settings() {
	if r := o.w.any(o.simDice); r != nil && o.chance(0.3) {
		ctx, cancel := context.WithTimeout(o.w.ctx, time.Second)
		defer cancel()
		_, _ = r.node.Load().Propose(ctx, setStaleness(o.tenant, []time.Duration{time.Second, 2 * time.Second, 4 * time.Second}[o.draw(3)]))
	}
}

func setStaleness(name string, to time.Duration) *commandpb.Command {
	staleness := int64(to)
	return &commandpb.Command{Body: &commandpb.Command_SetTenant{SetTenant: &commandpb.SetTenant{TenantId: id(name), MaxStaleness: &staleness}}}
}

// propose insists until it is known what became of a command.
func (o operator) propose(ctx context.Context, kind history.Kind, c *commandpb.Command) (r *simRun, index uint64) {
	command := hierarchy.NewID()
	c.Id = command[:]
	h := history.Operation{Client: 1000, Kind: kind, Tenant: o.tenant, Call: o.w.told.now(), Outcome: history.Unknown}
	for ctx.Err() == nil {
		if r = o.at; r == nil {
			r = o.w.any(o.simDice)
		}
		if r != nil {
			h.Tries++
			r.awake()
			trying, cancel := context.WithTimeout(ctx, 3*time.Second)
			res, err := r.node.Load().Propose(trying, c)
			cancel()
			r.awake()
			if err == nil && r.ctx.Err() == nil {
				h.Node, h.Run, h.Index = r.machine.name, r.n, res.Index
				if kind == history.Enable {
					h.Outcome, h.Return = history.OK, o.w.told.now()
					o.w.told.add(h)
				}
				return r, res.Index
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
	if kind == history.Enable {
		o.w.told.add(h)
	}
	return nil, 0
}

// disable returns once it is told that the disable is effective everywhere, and false if it never is.
func (o operator) disable(ctx context.Context) bool {
	call := o.w.told.now()
	for ctx.Err() == nil {
		c := disable(o.tenant)
		r, index := o.propose(ctx, history.Disable, c)
		if r == nil {
			break
		}
		if s := r.node.Load().State(); s.Index() >= index && o.fenced(ctx, r, s.Awaited(c, index)) {
			h := history.Operation{Client: 1000, Node: r.machine.name, Run: r.n, Kind: history.Disable, Tenant: o.tenant, Call: call, Return: o.w.told.now(), Outcome: history.OK, Index: index}
			o.w.told.add(h)
			o.w.told.mu.Lock()
			o.w.told.closed[o.tenant] = append(o.w.told.closed[o.tenant], simClosing{index: index, from: h.Return})
			o.w.told.mu.Unlock()
			return true
		}
	}
	o.w.told.add(history.Operation{Client: 1000, Kind: history.Disable, Tenant: o.tenant, Call: call, Outcome: history.Unknown})
	return false
}

// fenced waits as the daemon does.
func (o operator) fenced(ctx context.Context, r *simRun, f *state.Fence) bool {
	if f == nil {
		return r.ctx.Err() == nil
	}
	ctx, cancel := context.WithTimeout(ctx, f.Wait+(f.Wait+99)/100+500*time.Millisecond)
	defer cancel()
	_, err := r.node.Load().Await(ctx, f)
	r.awake()
	return err == nil && r.ctx.Err() == nil
}

func (o operator) enable(ctx context.Context) {
	o.w.told.mu.Lock()
	if closed := o.w.told.closed[o.tenant]; len(closed) > 0 {
		closed[len(closed)-1].till = o.w.told.now()
	}
	o.w.told.mu.Unlock()
	o.propose(ctx, history.Enable, &commandpb.Command{Body: &commandpb.Command_SetTenantState{SetTenantState: &commandpb.SetTenantState{
		TenantId: id(o.tenant), State: commandpb.TenantState_TENANT_STATE_ENABLED, Reason: "over",
	}}})
}
