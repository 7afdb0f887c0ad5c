// Package softhsm makes a SoftHSM2 token directory what a daemon can rely on: created on
// purpose, durable, and whole again after a crash.
//
// SoftHSM 2.6.1 rewrites its files in place: ftruncate(0), then write, and never fsync. Whatever
// ends the process between the two leaves an empty file: of 300 kills at random moments inside
// of C_SetAttributeValue 23 lost the key, of 300 inside of C_Login 47 lost the whole token. Key
// generation rewrites the new file some thirty times and leaves, when interrupted, empty files
// that PKCS#11 neither shows nor deletes, keys without a value, or half of a pair.
//
// # What it promises
//
// Everything that rewrites files of the token runs in a bracket of a [Guard]. Then, whenever the
// process is killed or the machine loses power:
//
//   - what a bracket had made when it returned without error is there after the next start, and
//     what [Guard.Destroy] had removed is not;
//   - the token itself opens with its PIN;
//   - nothing half-made can be seen through PKCS#11.
//
// The means is a shadow: beside the token, the last good copy of each of its files, fsynced. A
// bracket does not begin before every file is in the shadow as it is, and it does not return
// before what it changed is synced in place and in the shadow again. So the shadow holds all that
// was ever acknowledged. A torn file is put back from it. A half-made file that is not in it
// was never acknowledged: it is moved to the quarantine, and not deleted.
//
// A file that is whole wins over its copy: it is a change that was complete but for its copy.
//
// # Processes
//
// Several processes may use a directory. Each holds the directory lock shared as long as it has
// the module loaded; [Dir.Repair] takes it alone. Brackets exclude each other over all processes
// by the change lock. Both are flocks: the kernel releases them when their holder dies, and their
// files are never removed.
//
// A process that dies inside of a bracket leaves its damage to whoever takes the change lock
// next: [Dir.Attach] and every bracket look first at what changed since, and put it right. With
// the change lock held nobody else is writing, and SoftHSM opens its files by name at each use, so
// that a file may be put back or moved aside under a module that has it open.
//
// # What it leaves to others
//
// The package loads no module and knows no PIN: it looks at files. Whether an object is a key as
// it must be is for package pkcs11 to judge. Changes that are made without a bracket (an
// operator's pkcs11-tool) are noticed and copied at the next one, but are not protected while they
// happen; an object that is deleted without one comes back.
//
// The shadow is the same ciphertext, on the same disk, with the same permissions. It is no backup.
package softhsm
