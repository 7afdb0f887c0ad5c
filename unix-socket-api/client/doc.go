// Package client talks to kekd over its Unix sockets.
//
// [Dial] is for services. The operations of a [Client] may be called from many goroutines at
// once, and should be: those that are under way together travel together, so that 64 callers
// cost the daemon hardly more than one does. [Client.Batch] and [Client.OpenStream] are for
// those who have many operations in hand.
//
// [DialAdmin] is for administration, and [DialKeys] for those who want the messages themselves.
//
// Every error of a call is an [*Error]: it has the stable code and a hint, and it matches the
// errors of package hierarchy by errors.Is. A plaintext that is handed out is the caller's to
// wipe.
package client
