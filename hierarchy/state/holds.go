package state

import (
	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/policy"
)

// Holds tells of a command that was done once whether what it did still stands. Who repeats one with
// its idempotency ID hears what became of it then; that it was undone since, the ID does not tell.
func (s *State) Holds(c *commandpb.Command) bool {
	switch b := c.GetBody().(type) {
	case *commandpb.Command_CreateTenant, *commandpb.Command_CreateKey, *commandpb.Command_RotateKey:
		return true // what has a name or a number keeps it
	case *commandpb.Command_CreateService:
		want, err := serviceFromPB(&commandpb.Service{Name: b.CreateService.GetName(), Uid: b.CreateService.Uid, Gid: b.CreateService.Gid})
		if err != nil {
			return false
		}
		svc, ok := s.Service(want.Name)
		return ok && matchOf(svc) == matchOf(want)
	case *commandpb.Command_DeleteService:
		_, ok := s.Service(b.DeleteService.GetName())
		return !ok
	case *commandpb.Command_RevokePolicy:
		pattern, err := policy.ParsePattern(b.RevokePolicy.GetPattern())
		if err != nil {
			return false
		}
		_, ok := s.rules.Get(ruleKey(&policy.Rule{Service: b.RevokePolicy.GetService(), Pattern: pattern}))
		return !ok
	case *commandpb.Command_InviteNode:
		_, ok := s.invitedByID.get(idOrZero(b.InviteNode.GetInvitation().GetId()))
		return ok
	case *commandpb.Command_JoinNode:
		_, ok := s.Node(hierarchy.NodeID{ID: idOrZero(b.JoinNode.GetNode().GetId())})
		return ok
	}
	// The others set something: to do it again would change nothing.
	d := s.draft()
	next, err := d.attempt(c)
	return err == nil && *next.sum == *d.sum
}

// idOrZero reads an ID that is compared with those that are there, none of which is zero.
func idOrZero(b []byte) hierarchy.ID {
	id, _ := hierarchy.IDFromBytes(b)
	return id
}
