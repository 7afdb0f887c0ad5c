package softhsmtests

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kekd/kekd/hierarchy/state"
	"github.com/kekd/kekd/softhsm-tests/history"
	"github.com/kekd/kekd/unix-socket-api/client"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

// disturbed is how long a round's nodes and network fail, at least. A history of more takes long to judge.
const disturbed = 20 * time.Second

// Clients at all nodes of a cluster with voters and replicas ask for changes, try again what they are
// not told the outcome of, and read and use what is there, while the network fails and nodes are stopped and
// killed. Nothing that was acknowledged is lost, nothing is done twice, and in the end all nodes agree.
func TestLinearizable(t *testing.T) {
	a := startMembers(t, "eu-west=voting*3", "us-east=replica*2")
	seed := seedOf(t)
	random := rand.New(rand.NewPCG(seed, 0))
	ctx, uid := within(t, 30*time.Second), uint32(os.Getuid())
	if _, err := a.nodes[0].admin.CreateService(ctx, &kekdv1.CreateServiceRequest{Name: service, Uid: &uid}); err != nil {
		t.Fatal(err)
	}
	for i := range loops(1, 30) {
		t.Run(fmt.Sprint("round ", i), func(t *testing.T) {
			h := &history.History{Name: t.Name(), Seed: seed}
			var record history.Recorder
			t.Cleanup(func() { // also of a round that was given up
				h.Operations = record.Operations()
				judge(t, h)
			})
			a.round(t, newCallers(t, a, &record, random, i), random)
		})
		if t.Failed() {
			return
		}
	}
}

// round is one history.
func (a *members) round(t *testing.T, callers []*caller, random *rand.Rand) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var working sync.WaitGroup
	for _, c := range callers {
		working.Go(func() { c.work(ctx) })
	}
	done := a.disturb(t.Context(), random)
	cancel()
	working.Wait()
	a.agree(callers[0])

	acknowledged := callers[0].commands.Load()
	t.Logf("%d commands were acknowledged; %s", acknowledged, counts(done))
	if acknowledged < int64(disturbed/time.Second)*5 {
		t.Errorf("in %v only %d commands were acknowledged", disturbed, acknowledged)
	}
}

// atOnce is how many work at the same time.
const atOnce = 8

// newCallers makes tenants of a round, and who works on them.
func newCallers(t *testing.T, a *members, record *history.Recorder, random *rand.Rand, round int) (callers []*caller) {
	t.Helper()
	var values atomic.Uint64
	var commands atomic.Int64
	uses := map[string]*client.Client{}
	for _, m := range a.nodes {
		uses[m.Name] = keys(t, m.Node)
	}
	for i := range atOnce {
		callers = append(callers, &caller{t: t, id: i, all: a, record: record, uses: uses, values: &values, commands: &commands,
			random: rand.New(rand.NewPCG(random.Uint64(), uint64(i)))})
	}
	ctx, first := within(t, 30*time.Second), callers[0]
	for i := range 3 {
		tenant := &callersTenant{name: fmt.Sprintf("t%d-%d", round, i)}
		first.command(history.Operation{Kind: history.Create, Tenant: tenant.name})
		first.command(history.Operation{Kind: history.Allow, Tenant: tenant.name})
		if _, err := a.nodes[0].admin.CreateKey(ctx, &kekdv1.CreateKeyRequest{Key: tenant.name + "/orders"}); err != nil {
			t.Fatal(err)
		}
		r, err := uses[a.nodes[0].Name].GenerateDataKey(ctx, tenant.name+"/orders", 32, client.Options{})
		if err != nil {
			t.Fatal(err)
		}
		tenant.envelope, tenant.plaintext = r.Envelope, r.Plaintext
		for _, c := range callers {
			c.tenants = append(c.tenants, tenant)
		}
	}
	return callers
}

// agree wants all nodes to come to one state, and each to show what there is.
func (a *members) agree(c *caller) {
	a.t.Helper()
	for _, tenant := range c.tenants {
		// Whatever was committed before stands before these.
		c.command(history.Operation{Kind: history.Set, Tenant: tenant.name, Value: c.values.Add(1)})
	}
	a.converge()
	for _, m := range a.nodes {
		for _, tenant := range c.tenants {
			c.read(tenant.name, m, true)
		}
	}
	// The index moves on by itself, so that all have to be caught at the same one.
	eventually(a.t, 30*time.Second, "all nodes are seen at one index", func() bool {
		states := make([]*state.State, len(a.nodes))
		var saving sync.WaitGroup
		for i, m := range a.nodes {
			saving.Go(func() { states[i], _ = snapshotOf(a.t, m) })
		}
		saving.Wait()
		for i, s := range states {
			if s == nil || s.Index() != states[0].Index() {
				return false
			}
			if s.Hash() != states[0].Hash() {
				a.t.Fatalf("at index %d %s and %s have different states", s.Index(), a.nodes[0].Name, a.nodes[i].Name)
			}
		}
		return true
	})
	for _, m := range a.nodes {
		r, err := m.admin.VerifyAudit(within(a.t, 30*time.Second), &kekdv1.VerifyAuditRequest{})
		if err != nil || !r.Ok {
			a.t.Errorf("the audit of %s: %v %v", m.Name, r, err)
		}
	}
}

func snapshotOf(t *testing.T, m *member) (*state.State, error) {
	stream, err := m.admin.SaveSnapshot(within(t, 10*time.Second), &kekdv1.SaveSnapshotRequest{})
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	for {
		chunk, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return state.Read(&b)
		}
		if err != nil {
			return nil, err
		}
		b.Write(chunk.Data)
	}
}

// judge fails the test for what cannot be, and then keeps the history.
func judge(t *testing.T, h *history.History) {
	t.Helper()
	begun := time.Now()
	violations := history.Judge(h)
	t.Logf("%d operations were judged in %v", len(h.Operations), time.Since(begun))
	for _, v := range violations {
		t.Error(v)
	}
	if !t.Failed() {
		return
	}
	dir := os.Getenv("KEKD_HISTORIES")
	if dir == "" {
		dir = os.TempDir()
	}
	path, err := h.Save(dir)
	if err != nil {
		t.Errorf("the history is not kept: %v", err)
		return
	}
	if path, err = filepath.Abs(path); err == nil {
		t.Logf("the history is kept: make recheck FILE=%s", strings.TrimSpace(path))
	}
}
