package state

import (
	"fmt"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
)

// Level is the highest feature level that this version of kekd knows. docs/ROLLOUT.md says how it is raised.
const Level = 1

// LevelOf is the feature level that a cluster has to be at for a command to be used. A kind of command, or
// a field of one, that a later version brings gets a level of its own here.
func LevelOf(*commandpb.Command) uint32 { return 1 }

// raiseFeatureLevel lets commands be used that all members know by now. A node that does not know the level
// must not go on: what comes next may be a command that it would have to skip.
func (d *draft) raiseFeatureLevel(m *commandpb.RaiseFeatureLevel) error {
	level := m.GetLevel()
	switch {
	case level > Level:
		return fmt.Errorf("%w: the cluster is raised to feature level %d, this version knows %d: install the version that the other members have", ErrUnknownCommand, level, uint32(Level))
	case level < d.level:
		return fmt.Errorf("%w: the cluster is at feature level %d, it does not go back to %d", hierarchy.ErrFailedPrecondition, d.level, level)
	}
	d.level = level
	return nil
}
