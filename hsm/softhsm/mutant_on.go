//go:build softhsm_mutant

package softhsm

import "os"

// skipped leaves out the one step that SOFTHSM_MUTANT names. Only tests build with this tag.
func skipped(s step) bool { return os.Getenv("SOFTHSM_MUTANT") == string(s) }
