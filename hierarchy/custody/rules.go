//go:build !custody_mutant

package custody

// looksLast: what is decided is decided again just before the reply. Its mutant stands in rules_mutant.go.
func looksLast() bool { return true }
