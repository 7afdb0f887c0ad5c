//go:build custody_mutant

package custody

import "os"

// The last look is left out if CUSTODY_MUTANT says so. Only tests build with this tag.
var mutant = os.Getenv("CUSTODY_MUTANT")

func looksLast() bool { return mutant != "no-last-look" }
