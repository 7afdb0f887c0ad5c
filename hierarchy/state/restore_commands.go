package state

import (
	"fmt"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
)

// proposed bounds what a proposer adds to a command besides its body, in bytes: idempotency ID, stamp and actor.
const proposed = 256

// RestoreCommands splits a snapshot into commands, each of fewer than maxBytes when it is encoded with what a
// proposer adds. They are to be proposed in this order; each stands for itself, so that what is
// interrupted is begun anew. An idempotency ID is for the caller to give.
//
// The commands carry the snapshot's cluster ID, and another cluster refuses them. A caller that has the
// living state compares the two first, to say so before anything is proposed.
func RestoreCommands(snapshot *State, maxBytes int) ([]*commandpb.Command, error) {
	if !snapshot.Initialised() {
		return nil, fmt.Errorf("%w: the snapshot is of no cluster", hierarchy.ErrInvalidArgument)
	}
	p := packer{cluster: snapshot.cluster, room: maxBytes - proposed}
	for rec := range snapshot.snapshotRecords {
		if !restorable(rec) {
			continue
		}
		if k := rec.GetKey(); k != nil {
			if err := p.key(k); err != nil {
				return nil, err
			}
		} else if err := p.add(rec); err != nil {
			return nil, err
		}
	}
	return p.commands, nil
}

// packer fills commands.
type packer struct {
	cluster  hierarchy.ClusterID
	room     int // bytes of records in a command
	size     int // of those in the last one
	commands []*commandpb.Command
}

// framed is the most that a message takes inside of another: a tag of one byte, and its length.
func framed(size int) int { return size + 1 + 5 }

func (p *packer) add(rec *commandpb.SnapshotRecord) error {
	size := framed(rec.SizeVT())
	if size > p.room {
		return fmt.Errorf("%w: a record of the snapshot has %d bytes, and a command has room for %d", hierarchy.ErrInvalidArgument, size, max(p.room, 0))
	}
	if len(p.commands) == 0 || p.size+size > p.room {
		p.commands = append(p.commands, &commandpb.Command{
			Format: Format, Body: &commandpb.Command_RestoreRecords{RestoreRecords: &commandpb.RestoreRecords{ClusterId: p.cluster.ID[:]}},
		})
		p.size = 0
	}
	m := p.commands[len(p.commands)-1].GetRestoreRecords()
	m.Records = append(m.Records, rec)
	p.size += size
	return nil
}

// key adds one in as many pieces as its versions need: at a rotation an hour they outgrow a command.
func (p *packer) key(k *commandpb.Key) error {
	versions := k.Versions
	k.Versions = nil
	empty := framed(framed(k.SizeVT()))
	for len(versions) > 0 {
		piece := &commandpb.Key{
			TenantId: k.TenantId, Id: k.Id, Name: k.Name, CreatedAt: k.CreatedAt, RotateEvery: k.RotateEvery, MinUnwrapVersion: k.MinUnwrapVersion,
		}
		for size := empty; len(versions) > 0; versions = versions[1:] {
			v := versions[0]
			for _, r := range v.Regions {
				r.Reservations = nil // not taken
			}
			size += framed(v.SizeVT())
			if size > p.room && len(piece.Versions) > 0 {
				break
			}
			piece.Versions = append(piece.Versions, v)
		}
		if err := p.add(&commandpb.SnapshotRecord{Record: &commandpb.SnapshotRecord_Key{Key: piece}}); err != nil {
			return err
		}
	}
	return nil
}
