package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/reconcile"
	"github.com/kekd/kekd/hierarchy/state"
)

func idOf(name string) hierarchy.ID {
	sum := sha256.Sum256([]byte(name))
	return hierarchy.ID(sum[:hierarchy.IDSize])
}

var (
	eu = hierarchy.RegionID{ID: idOf("eu")}
	us = hierarchy.RegionID{ID: idOf("us")}

	acme   = hierarchy.TenantID{ID: idOf("acme")}
	orders = hierarchy.KeyID{ID: idOf("acme/orders")}
)

// copyOfState is the real state machine, and a token that has what the state said at some time.
type copyOfState struct {
	t *testing.T

	mu      sync.Mutex
	state   *state.State
	changed chan struct{}
	settled uint64 // the token is settled up to here
}

// newCopyOfState has a key that is placed in two regions, and minted in none. There is no command
// that places a tenant in two.
func newCopyOfState(t *testing.T) *copyOfState {
	c := &copyOfState{t: t, state: state.New(), changed: make(chan struct{}), settled: ^uint64(0)}
	node, cluster := idOf("node"), idOf("cluster")
	c.apply(&commandpb.Command{Body: &commandpb.Command_InitCluster{InitCluster: &commandpb.InitCluster{
		ClusterId: cluster[:],
		Region:    &commandpb.Region{Id: eu.ID[:], Name: "eu", Role: commandpb.RegionRole_REGION_ROLE_VOTING, Identity: []byte("i"), MintingNode: node[:]},
		Node:      &commandpb.Node{Id: node[:], Name: "eu-1", RegionId: eu.ID[:], Voter: true},
	}}})
	c.apply(&commandpb.Command{Body: &commandpb.Command_CreateTenant{CreateTenant: &commandpb.CreateTenant{TenantId: acme.ID[:], Name: "acme", MaxStaleness: int64(time.Second)}}})
	tenant, _ := c.state.Tenant(acme)
	tenant.Placement = append(tenant.Placement, us)
	c.apply(&commandpb.Command{Body: &commandpb.Command_CreateKey{CreateKey: &commandpb.CreateKey{TenantId: acme.ID[:], KeyId: orders.ID[:], Name: "orders"}}})
	return c
}

func (c *copyOfState) apply(cmd *commandpb.Command) {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	id := hierarchy.NewID()
	cmd.Format, cmd.Id = state.Format, id[:]
	cmd.Stamp = time.Date(2026, 1, 1, 0, 0, int(c.state.Index()), 0, time.UTC).UnixNano()
	next, r := state.Apply(c.state, state.Meta{Index: c.state.Index() + 1}, cmd)
	if r.Err != nil {
		c.t.Fatalf("%T: %v", cmd.Body, r.Err)
	}
	c.state = next
	c.wake()
}

// wake is called with mu held.
func (c *copyOfState) wake() {
	close(c.changed)
	c.changed = make(chan struct{})
}

func (c *copyOfState) minted(region hierarchy.RegionID) {
	c.t.Helper()
	object := hierarchy.KEKObjectID(c.State().ClusterID(), acme, orders, 1, region, 1)
	c.apply(&commandpb.Command{Body: &commandpb.Command_RecordMinted{RecordMinted: &commandpb.RecordMinted{
		TenantId: acme.ID[:], KeyId: orders.ID[:], Version: 1, Attempt: 1, RegionId: region.ID[:], ObjectId: object[:], CheckValue: object[:3],
	}}})
}

func (c *copyOfState) State() *state.State {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state
}

func (c *copyOfState) Changed() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.changed
}

func (c *copyOfState) settleTo(index uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.settled = index
	c.wake() // who waits for either looks again
}

func (c *copyOfState) Settled(ctx context.Context, index uint64, _ reconcile.VersionID) error {
	for {
		c.mu.Lock()
		done, changed := c.settled >= index, c.changed
		c.mu.Unlock()
		if done {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// A version of two regions is waited for until both have made it, and this region's token is ready
// for what is active by then.
func TestAVersionOfTwoRegionsIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCopyOfState(t)
		c.minted(eu)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		done := make(chan error, 1)
		go func() { done <- (minting{c, c, eu}).WaitServable(ctx, acme, orders, 1) }()
		waits := func(what string) {
			t.Helper()
			synctest.Wait()
			select {
			case err := <-done:
				t.Fatalf("%s was not waited for: %v", what, err)
			default:
			}
		}
		waits("the other region")
		time.Sleep(30 * time.Second)
		waits("the other region")
		before := c.State().Revision()
		c.settleTo(before - 1)
		waits("this region's token")
		c.minted(us)
		c.settleTo(before) // it knows nothing of the other region yet
		waits("this region's token, for what is active")
		c.settleTo(c.State().Revision())
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// When the time is up it is told which regions are not ready.
func TestARegionThatDoesNotMint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCopyOfState(t)
		c.minted(eu)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		err := minting{c, c, eu}.WaitServable(ctx, acme, orders, 1)
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "not minted in "+us.String()) || strings.Contains(err.Error(), "eu") {
			t.Errorf("got %v", err)
		}
	})
}

// A node whose region has no part in a key cannot serve it, and nobody waits for that.
func TestAVersionOfOtherRegions(t *testing.T) {
	c := newCopyOfState(t)
	other := hierarchy.RegionID{ID: idOf("ap")}
	if err := (minting{c, c, other}).WaitServable(t.Context(), acme, orders, 1); !errors.Is(err, hierarchy.ErrFailedPrecondition) {
		t.Errorf("got %v", err)
	}
}
