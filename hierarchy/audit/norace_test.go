//go:build !race

package audit_test

// stride: every record is tampered with.
const stride = 1
