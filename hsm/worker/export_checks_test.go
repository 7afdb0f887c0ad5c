package worker

import "github.com/kekd/kekd/hsm"

func AppendChecks(checks []hsm.Check) []byte { return appendChecks(nil, checks) }

func ParseChecks(b []byte) ([]hsm.Check, error) {
	d := decoder{b: b}
	checks := d.checks()
	return checks, d.done()
}
