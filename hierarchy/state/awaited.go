package state

import (
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
)

// OnlyCloses tells of a command that it opens nothing, so that whoever asks for it wants to know when it is effective,
// also where it changes nothing because all is closed already.
func OnlyCloses(c *commandpb.Command) bool {
	switch b := c.GetBody().(type) {
	case *commandpb.Command_SetTenantState:
		return b.SetTenantState.GetState() == commandpb.TenantState_TENANT_STATE_DISABLED
	case *commandpb.Command_SetVersionState:
		return fenceKind(c) != ""
	case *commandpb.Command_RevokePolicy, *commandpb.Command_DeleteService, *commandpb.Command_RestoreRecords:
		return true
	}
	return false
}

// Closes tries a command: it returns what its fence would wait if it were applied now, and 0 if it would close
// nothing or be refused.
func (s *State) Closes(c *commandpb.Command) time.Duration {
	if fenceKind(c) == "" {
		return 0
	}
	next, err := s.draft().attempt(c)
	if err != nil {
		return 0
	}
	return next.closing.wait
}

// Awaited is what whoever asked for a command waits for once that took effect at an index: the fence of that index; or,
// where it made none since somebody else had closed the same before, one that waits for all that may be
// of that. Nil: there is none that is incomplete.
func (s *State) Awaited(c *commandpb.Command, index uint64) *Fence {
	if f, ok := s.Fence(index); ok {
		return f
	}
	var found *Fence
	for _, f := range s.closedBefore(c) {
		found = Together(found, f)
	}
	return found
}

// Unfenced tells of a tenant whether some node may still use its keys by a state from before what has disabled it, or suspended one of
// its versions. Rules and max_staleness are not about keys.
func (s *State) Unfenced(tenant hierarchy.TenantID) bool {
	for _, f := range s.FencesOf(tenant) {
		switch f.Kind {
		case "tenant-disable", "key-version-suspend", "restore":
			return true
		}
		if f.Since != 0 { // it stands for others
			return true
		}
	}
	return false
}

// closedBefore are the incomplete fences of which one may be of what a command asks for again. Of a rule that is
// narrowed again there are none: nothing tells which of a tenant's rules a fence is of.
func (s *State) closedBefore(c *commandpb.Command) (fences []*Fence) {
	switch b := c.GetBody().(type) {
	case *commandpb.Command_SetTenantState:
		if OnlyCloses(c) {
			return s.FencesOf(tenantOf(b.SetTenantState))
		}
	case *commandpb.Command_SetVersionState:
		if OnlyCloses(c) {
			return s.FencesOf(tenantOf(b.SetVersionState))
		}
	case *commandpb.Command_SetKey:
		if b.SetKey.MinUnwrapVersion != nil {
			return s.FencesOf(tenantOf(b.SetKey))
		}
	case *commandpb.Command_SetTenant:
		if b.SetTenant.MaxStaleness == nil {
			return nil
		}
		for _, f := range s.FencesOf(tenantOf(b.SetTenant)) {
			if f.LoweredFrom > time.Duration(b.SetTenant.GetMaxStaleness()) {
				fences = append(fences, f)
			}
		}
	}
	return fences
}

func tenantOf(c interface{ GetTenantId() []byte }) hierarchy.TenantID {
	return hierarchy.TenantID{ID: idOrZero(c.GetTenantId())}
}
