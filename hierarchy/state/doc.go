// Package state is the replicated state machine: what every node of a cluster agrees on.
//
// [Apply] takes a state and a command and returns the next state. It is pure: no clock, no
// randomness, no I/O and no HSM, so that every node which applies the same log comes to the same
// state, and [State.Hash] says whether it did. Time enters as the stamp of a command. What a command
// in an old log means never changes; how a refusal is worded may.
//
// A [State] is immutable. Readers keep a pointer to one as long as they like, take no lock and
// copy nothing; a snapshot is such a pointer ([Write], [Read]). What changes between two states is
// shared by neither, the rest by both.
//
// Every check that protects the hierarchy stands here and not in the API, since a command may
// come from any node: what is refused is refused by all, with the same code. Who may propose what,
// and the objects in the tokens, are for others.
package state
