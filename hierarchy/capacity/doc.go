// Package capacity keeps tokens from being filled: it counts what the hierarchy needs of a region's
// token, in objects, and says whether one more key or version has room.
//
// # What it promises
//
// A key is refused with [hierarchy.ErrCapacity] while there is still room to rotate every key that
// exists, once: after an incident that is what has to be done, and it is no time to buy an HSM. A
// version, be it asked for by an operator or due, is refused while the token still has room for what
// the daemon itself needs. What is asked for side by side on one node does not add up to more.
//
// # What it leaves to others
//
// Nodes that answer at the same time do not know of each other's requests, and what stands in the
// hierarchy may not be what is in the token. So whoever mints looks at the token itself once more.
// How much a token holds is for the operator and the token to say.
package capacity
