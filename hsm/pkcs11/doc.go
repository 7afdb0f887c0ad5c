// Package pkcs11 drives a token through PKCS#11, in this process. It is the only package that
// speaks PKCS#11 to key-encryption keys.
//
// # Whose module it is
//
// A PKCS#11 library has one state for the whole process: one C_Initialize, one login for each
// token, one C_Finalize. So there is an order:
//
//  1. [Probe] finds the token, looks at its PIN flags, and lets go of the module again.
//  2. Where this process also signs, package identity opens the token through crypto11, which
//     insists on initialising the module itself, and which logs in. A failure there finalises
//     the module under everybody, so it comes before anything is served.
//  3. [Open] joins the module that it finds initialised, and a login that it finds done. Where
//     it finds neither, it initialises and logs in itself, with Config.PIN, in one try.
//  4. Close goes the other way round: the [Token], then the identity. Whoever initialised the
//     module finalises it.
//
// # What it promises
//
// No call outlasts its context: operations run on copies, in goroutines of their own, so a
// module that hangs keeps its thread and not its caller. Every error wraps one of package
// hsm's, by the code and never by the text. No key is used whose attributes were not read back
// and that has not passed a known-answer test. One goroutine finds and changes objects; finds
// and changes never overlap in one process.
//
// A session that is lost is replaced, and its operations are tried once more. A module that is
// lost is reported by [Token.Failed], once, and nothing works any more: the owner replaces the
// process.
//
// # What it leaves to others
//
// That SoftHSM's files reach the disk (Config.Guard), that two processes do not mint under
// one ID, who may use which key, and when a key may be used again.
package pkcs11
