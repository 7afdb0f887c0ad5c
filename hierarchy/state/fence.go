package state

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"iter"
	"slices"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
)

// MaxFences is how many fences may be incomplete before those of one tenant are merged. A closing is never
// refused for them.
const MaxFences = 1024

// Fences are all that are incomplete, sorted by index.
func (s *State) Fences() iter.Seq[*Fence] { return all(s.fences, nil) }

// Fence finds the one that stands for the closing at an index. None: there was nothing to be waited for, or
// it is complete.
//
// If that one was merged, what is found is the fence of a later closing, and if several span the index, one
// that waits for all of them, since nothing tells which of them it is. It may also be found for a closing
// that is complete: to wait for more than there is to does no harm. So who has waited for a fence is done,
// whatever is found afterwards.
func (s *State) Fence(index uint64) (*Fence, bool) {
	if f, ok := s.fences.Get(indexKey(index)); ok {
		return f, true
	}
	var found *Fence
	it := s.fences.Root().Iterator()
	it.SeekLowerBound(indexKey(index))
	for _, f, ok := it.Next(); ok; _, f, ok = it.Next() {
		if f.Since != 0 && f.Since <= index {
			found = Together(found, f)
		}
	}
	return found, found != nil
}

// Together is a fence that waits for two, the earlier of which may be nil.
func Together(earlier, later *Fence) *Fence {
	if earlier == nil {
		return later
	}
	f := *later
	f.Since, f.Wait, f.LoweredFrom = min(earlier.Since, later.Since), max(earlier.Wait, later.Wait), max(earlier.LoweredFrom, later.LoweredFrom)
	if earlier.Tenant != later.Tenant {
		f.Tenant = hierarchy.TenantID{}
	}
	f.Holders = slices.Concat(earlier.Holders, later.Holders)
	slices.SortFunc(f.Holders, compareHolders)
	f.Holders = slices.Compact(f.Holders)
	return &f
}

// FencesOf are those that are incomplete of a tenant, and those of several tenants, sorted by index. Who
// asks again for what is closed already, such as a disable of a disabled tenant, waits for them all: its
// own command changed nothing, so it made no fence.
func (s *State) FencesOf(tenant hierarchy.TenantID) []*Fence {
	fences := slices.Collect(all(s.fencesOf, tenant.ID[:]))
	if !tenant.IsZero() {
		var several hierarchy.TenantID
		fences = slices.AppendSeq(fences, all(s.fencesOf, several.ID[:]))
	}
	slices.SortFunc(fences, func(a, b *Fence) int { return bytes.Compare(fenceKey(a), fenceKey(b)) })
	return fences
}

// CountingStaleness is what is waited for before a closing is effective: how old the state may be by which
// some node serves a tenant. It is the present max_staleness, or what an incomplete lowering came from if
// that is more, since a node that has not heard of the lowering goes by that. Who serves goes by the
// max_staleness of the state that he serves from.
//
// A tenant that is destroyed has none of its own. It is 0 for one that is not there.
func (s *State) CountingStaleness(tenant hierarchy.TenantID) time.Duration {
	t, ok := s.Tenant(tenant)
	if !ok {
		return 0
	}
	var longest time.Duration
	if t.State != hierarchy.TenantDestroyed {
		longest = t.MaxStaleness
	}
	for _, f := range s.FencesOf(tenant) {
		longest = max(longest, stillCounts(f))
	}
	return longest
}

// LongestStaleness is the longest [State.CountingStaleness] of all tenants, and 0 if there is none.
func (s *State) LongestStaleness() (longest time.Duration) {
	if k, _, ok := s.staleness.Root().Maximum(); ok {
		longest = time.Duration(binary.BigEndian.Uint64(k))
	}
	if k, _, ok := s.lowerings.Root().Maximum(); ok {
		f, _ := s.fences.Get(k[8:])
		longest = max(longest, stillCounts(f))
	}
	return longest
}

// putUpFence makes the fence of a command that has closed something. Where nobody may hold a lease there is
// nobody to wait for, and no fence.
func (d *draft) putUpFence(c *commandpb.Command) {
	if kind := fenceKind(c); kind != "" {
		d.putUpFenceOf(kind)
	}
}

func (d *draft) putUpFenceOf(kind string) {
	if d.closing.wait == 0 {
		return
	}
	f := &Fence{
		Index: d.index, Kind: kind, Tenant: d.closing.tenant, Wait: d.closing.wait, LoweredFrom: d.closing.lowered, Holders: d.Holders(),
	}
	if len(f.Holders) == 0 {
		return
	}
	if d.fences.Len() >= MaxFences {
		d.merge(f)
	}
	d.putFence(f)
}

// merge lets a fence stand for the newest one of the same tenant, so that there are no more than
// [MaxFences], and one for each tenant.
//
// That is safe: who has applied the later closing has applied the earlier, and to have waited the larger
// wait since the later was seen is to have waited either. Who could hold a lease at the earlier closing and
// is no holder at the later was waited for as a tombstone, or is proved to be dead.
func (d *draft) merge(f *Fence) {
	var newest *Fence
	for newest = range all(d.fencesOf, f.Tenant.ID[:]) {
	}
	if newest == nil {
		return
	}
	f.Since = newest.Since
	if f.Since == 0 {
		f.Since = newest.Index
	}
	f.Wait = max(f.Wait, newest.Wait)
	f.LoweredFrom = max(f.LoweredFrom, newest.LoweredFrom)
	d.deleteFence(newest)
}

// completeFence drops a fence. One that is not there was completed by another node, or merged.
func (d *draft) completeFence(m *commandpb.CompleteFence) error {
	if m.GetIndex() == 0 || m.GetIndex() >= d.index {
		return fmt.Errorf("%w: a fence at index %d is not of a command before this one, which is at %d", hierarchy.ErrInvalidArgument, m.GetIndex(), d.index)
	}
	if f, ok := d.fences.Get(indexKey(m.GetIndex())); ok {
		d.deleteFence(f)
	}
	return nil
}

func (d *draft) putFence(f *Fence) {
	d.account(nil, record(hashFence, fenceToPB(f)))
	d.fences, _, _ = d.fences.Insert(fenceKey(f), f)
	d.fencesOf, _, _ = d.fencesOf.Insert(tenantFenceKey(f), f)
	if f.LoweredFrom > 0 {
		d.lowerings, _, _ = d.lowerings.Insert(loweringKey(f), struct{}{})
	}
}

func (d *draft) deleteFence(f *Fence) {
	d.account(record(hashFence, fenceToPB(f)), nil)
	d.fences, _, _ = d.fences.Delete(fenceKey(f))
	d.fencesOf, _, _ = d.fencesOf.Delete(tenantFenceKey(f))
	d.lowerings, _, _ = d.lowerings.Delete(loweringKey(f))
}

func indexKey(index uint64) []byte { return binary.BigEndian.AppendUint64(nil, index) }

func fenceKey(f *Fence) []byte { return indexKey(f.Index) }

func tenantFenceKey(f *Fence) []byte { return append(bytes.Clone(f.Tenant.ID[:]), fenceKey(f)...) }

func loweringKey(f *Fence) []byte { return append(indexKey(uint64(f.LoweredFrom)), fenceKey(f)...) }

// loadFence takes one of a snapshot.
func (d *draft) loadFence(m *commandpb.Fence) (*Fence, error) {
	f, err := fenceFromPB(m)
	if err != nil {
		return nil, err
	}
	if f.Index == 0 || f.Index > d.index || f.Since >= f.Index {
		return nil, fmt.Errorf("a fence is of index %d, and stands for closings since %d, the state is of %d", f.Index, f.Since, d.index)
	}
	if _, ok := d.Tenant(f.Tenant); !ok && !f.Tenant.IsZero() {
		return nil, fmt.Errorf("the fence of index %d is of a tenant that is not there", f.Index)
	}
	for _, h := range f.Holders {
		if err := d.checkHolder(h); err != nil {
			return nil, err
		}
	}
	d.putFence(f)
	return f, nil
}
