// Package approval is what operators sign when something is to be opened, destroyed or moved, and how it is
// told that they did.
//
// An [Operator] has OpenSSH public keys. What is proposed is put into words once, as a [Statement], and its
// text is signed as it stands, by
//
//	ssh-keygen -Y sign -n kekd-break-glass -f KEY statement
//
// or by anything else that makes an SSHSIG signature. [Signature.Verify] compares one with the text.
//
// The package is pure. What it answers depends on its arguments alone, and is the same on every node and
// in every year: it asks no clock, and where a library might come to take more or less than it does
// today, the bounds are drawn here. Who is enrolled, how many have to sign and what then happens is for others.
package approval
