package approval

import (
	"fmt"

	"github.com/kekd/kekd/hierarchy"
)

// Class is a kind of operations that need as many operators as each other.
type Class string

// What operators sign. There is no class of closings: they need nobody's signature.
const (
	Opens    Class = "open"    // gives access, or more of it
	Moves    Class = "move"    // changes who holds or decides what
	Destroys Class = "destroy" // cannot be undone
	// Rosters are changes of the roster itself. They need as many as the class that needs the most, so that two
	// cannot first lower what three have to sign.
	Rosters Class = "roster"
)

// Classes are those that have a threshold of their own.
var Classes = []Class{Destroys, Moves, Opens}

// ParseClass reads one of [Classes].
func ParseClass(s string) (Class, error) {
	for _, c := range Classes {
		if string(c) == s {
			return c, nil
		}
	}
	return "", fmt.Errorf("%w: class %q: it is one of %v", hierarchy.ErrInvalidArgument, s, Classes)
}

// Operation is what a proposal is about.
type Operation string

// All of them. Those of regions, grants and destruction are named here before there is a command for each, so that
// a roster can say what it hands to admins.
const (
	DelegateOp       Operation = "delegate"
	EmergencyUnwrap  Operation = "emergency-unwrap"
	GrantCreate      Operation = "grant-create"
	KeyVersionResume Operation = "key-version-resume"
	KeyVersionShred  Operation = "key-version-destroy"
	LegacyRegister   Operation = "legacy-register"
	MinUnwrapLower   Operation = "min-unwrap-lower"
	NodeInvite       Operation = "node-invite"
	PolicyWiden      Operation = "policy-widen"
	QuorumSet        Operation = "quorum-set"
	QuotaRaise       Operation = "quota-raise"
	RegionAdd        Operation = "region-add"
	RegionPin        Operation = "region-pin"
	RegionPromote    Operation = "region-promote"
	Restore          Operation = "restore"
	RosterAdd        Operation = "roster-add"
	RosterRemove     Operation = "roster-remove"
	StalenessRaise   Operation = "max-staleness-raise"
	TenantEnable     Operation = "tenant-enable"
	TenantOffboard   Operation = "tenant-offboard"
	TenantPlace      Operation = "tenant-place"
	TenantRelease    Operation = "tenant-release"
	VoterPromote     Operation = "voter-promote"
)

var classes = map[Operation]Class{
	TenantEnable: Opens, TenantRelease: Opens, GrantCreate: Opens, EmergencyUnwrap: Opens, PolicyWiden: Opens, QuotaRaise: Opens,
	StalenessRaise: Opens, KeyVersionResume: Opens, MinUnwrapLower: Opens, LegacyRegister: Opens,
	NodeInvite: Moves, VoterPromote: Moves, TenantPlace: Moves, Restore: Moves, RegionAdd: Moves, RegionPin: Moves, RegionPromote: Moves,
	KeyVersionShred: Destroys, TenantOffboard: Destroys,
	RosterAdd: Rosters, RosterRemove: Rosters, QuorumSet: Rosters, DelegateOp: Rosters,
}

// ParseOperation reads the name of an operation.
func ParseOperation(s string) (Operation, error) {
	if _, ok := classes[Operation(s)]; !ok {
		return "", fmt.Errorf("%w: operation %q is not known", hierarchy.ErrInvalidArgument, s)
	}
	return Operation(s), nil
}

// Class is that of an operation which is known.
func (o Operation) Class() Class { return classes[o] }

// CheckDelegable tells whether a roster may leave an operation to admins. Destruction and forced promotion cannot be taken back, an
// emergency is no routine, and who may change the roster needs no roster.
func (o Operation) CheckDelegable() error {
	if o.Class() == Destroys || o.Class() == Rosters || o == EmergencyUnwrap || o == RegionPromote {
		return fmt.Errorf("%w: %s is not left to admins: it always takes a quorum", hierarchy.ErrInvalidArgument, o)
	}
	return nil
}
