// Package hsm says what the daemon asks of a token: references to keys, operations on data
// keys, the management of key objects, and the ways in which a token can fail.
//
// It is a port. A token may be driven in this process (package pkcs11) or in others (package
// worker), so everything that crosses it is plain data: no handle, no session, no callback.
// Key-encryption keys never cross it. Data keys do, and whoever gets one wipes it.
//
// Operations come in batches, because a token that lives in another process is reached by a
// message, and a message costs more than an encryption.
package hsm
