package state

import (
	"fmt"
	"slices"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
)

func holderToPB(h Holder) *commandpb.Holder {
	return &commandpb.Holder{NodeId: h.Node.ID[:], Incarnation: h.Incarnation[:]}
}

func holderFromPB(m *commandpb.Holder) (Holder, error) {
	node, err := idOf("node ID of a holder", m.GetNodeId())
	if err != nil {
		return Holder{}, err
	}
	incarnation, err := idOf("incarnation of a holder", m.GetIncarnation())
	if err != nil {
		return Holder{}, err
	}
	return Holder{hierarchy.NodeID{ID: node}, incarnation}, nil
}

func tombstoneToPB(t *Tombstone) *commandpb.Tombstone {
	return &commandpb.Tombstone{Holder: holderToPB(t.Holder), Index: t.Index, Wait: int64(t.Wait)}
}

func tombstoneFromPB(m *commandpb.Tombstone) (*Tombstone, error) {
	holder, err := holderFromPB(m.GetHolder())
	if err != nil {
		return nil, err
	}
	t := &Tombstone{Holder: holder, Index: m.GetIndex(), Wait: time.Duration(m.GetWait())}
	if t.Wait != 0 { // there was no tenant
		if err := checkStaleness(t.Wait); err != nil {
			return nil, fmt.Errorf("wait of a tombstone: %w", err)
		}
	}
	return t, nil
}

func fenceToPB(f *Fence) *commandpb.Fence {
	m := &commandpb.Fence{
		Index: f.Index, Kind: f.Kind, TenantId: optionalID(f.Tenant.ID), Wait: int64(f.Wait), LoweredFrom: int64(f.LoweredFrom), Since: f.Since,
	}
	for _, h := range f.Holders {
		m.Holders = append(m.Holders, holderToPB(h))
	}
	return m
}

func fenceFromPB(m *commandpb.Fence) (*Fence, error) {
	f := &Fence{
		Index: m.GetIndex(), Since: m.GetSince(), Kind: m.GetKind(), Wait: time.Duration(m.GetWait()), LoweredFrom: time.Duration(m.GetLoweredFrom()),
	}
	if err := checkName("kind of a fence", f.Kind); err != nil {
		return nil, err
	}
	if len(m.GetTenantId()) > 0 {
		tenant, err := idOf("tenant ID of a fence", m.GetTenantId())
		if err != nil {
			return nil, err
		}
		f.Tenant = hierarchy.TenantID{ID: tenant}
	}
	if err := checkStaleness(f.Wait); err != nil {
		return nil, fmt.Errorf("wait of a fence: %w", err)
	}
	if f.LoweredFrom != 0 {
		if err := checkStaleness(f.LoweredFrom); err != nil {
			return nil, fmt.Errorf("what a fence lowered from: %w", err)
		}
	}
	if f.LoweredFrom > f.Wait {
		return nil, fmt.Errorf("%w: a fence waits %v, and lowered from %v", hierarchy.ErrInvalidArgument, f.Wait, f.LoweredFrom)
	}
	for _, hm := range m.GetHolders() {
		h, err := holderFromPB(hm)
		if err != nil {
			return nil, err
		}
		f.Holders = append(f.Holders, h)
	}
	if len(f.Holders) == 0 || !slices.IsSortedFunc(f.Holders, compareHolders) || len(slices.Compact(slices.Clone(f.Holders))) < len(f.Holders) {
		return nil, fmt.Errorf("%w: the holders of a fence are not some, sorted, each of them once", hierarchy.ErrInvalidArgument)
	}
	return f, nil
}

func tombstoneRecord(t *Tombstone) *commandpb.SnapshotRecord {
	return &commandpb.SnapshotRecord{Record: &commandpb.SnapshotRecord_Tombstone{Tombstone: tombstoneToPB(t)}}
}

func fenceRecord(f *Fence) *commandpb.SnapshotRecord {
	return &commandpb.SnapshotRecord{Record: &commandpb.SnapshotRecord_Fence{Fence: fenceToPB(f)}}
}
