//go:build race

package audit_test

// stride: under the race detector, which makes reading ten times slower, only some of the
// records are tampered with. Nothing there runs at once.
const stride = 11
