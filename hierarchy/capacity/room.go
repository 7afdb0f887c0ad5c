package capacity

import (
	"fmt"

	"github.com/kekd/kekd/hierarchy"
)

// Spare is how many objects of a token are never asked for: a minting that is started anew makes its
// key before what the first try left is swept, and a check of the token makes one of its own. The
// rest is for nodes that do not know of each other.
const Spare = 8

// Token is what is known of a region's token.
type Token struct {
	// Max is how many objects it is to hold. 0: not known yet, and then nothing is refused here.
	Max uint64
	// Foreign is how many objects it has that no version is made of: the identity, the canary,
	// and what somebody else keeps there.
	Foreign uint64
	// Full is set when it has refused to make a key, whatever Max says.
	Full bool
}

// Room is a token, and what is needed of it.
type Room struct {
	Token
	Demand
}

// Used is how many objects the token has, or will have when all is minted.
func (r Room) Used() uint64 { return r.Foreign + r.Held }

// Left is how many objects may still be made: those that are kept for rotations are among them.
func (r Room) Left() uint64 {
	if r.Full {
		return 0
	}
	return less(r.Max, r.Used()+Spare)
}

// LeftForKeys is how many of these are for keys: a new key takes one, and keeps another one for its
// own rotation.
func (r Room) LeftForKeys() uint64 { return less(r.Left(), r.Rotations) / 2 }

// Version tells whether a version of so many objects has room: nil, or [hierarchy.ErrCapacity].
func (r Room) Version(objects uint64) error {
	if r.Max == 0 && !r.Full || objects == 0 || objects <= r.Left() {
		return nil
	}
	return r.refusal("")
}

// Key tells whether a key with versions of so many objects has room, and every key's rotation with
// it: nil, or [hierarchy.ErrCapacity].
func (r Room) Key(objects uint64) error {
	if r.Max == 0 && !r.Full || objects == 0 || r.Rotations+2*objects <= r.Left() {
		return nil
	}
	return r.refusal(fmt.Sprintf(", and %d are kept for one rotation of each key", r.Rotations+objects))
}

func (r Room) refusal(kept string) error {
	state := fmt.Sprintf("the token has %d of %d objects, %d are the daemon's own%s", r.Used(), r.Max, Spare, kept)
	if r.Full {
		state = "the token itself refuses to make another key"
	}
	return fmt.Errorf("%w: %s: if it has more room than that, raise hsm.max_objects; else enlarge the token, or put new keys into another cluster", hierarchy.ErrCapacity, state)
}

func less(a, b uint64) uint64 { return a - min(a, b) }
