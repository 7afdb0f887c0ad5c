package softhsm_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/kekd/kekd/hsm/softhsm"
)

// filled is a directory with 10,000 objects, all in the shadow.
func filled(b *testing.B) (d *softhsm.Dir, path string) {
	b.Helper()
	path = b.TempDir() + "/softhsm"
	d, err := softhsm.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	write(b, token("t"), path, "tokens", tokenName, "token.object")
	for i := range 10_000 {
		name := fmt.Sprintf("00000000-0000-0000-0000-%012d", i)
		write(b, secretKey(name), path, object(name))
		write(b, secretKey(name), path, shadow(name))
	}
	for range 2 { // once to compare, once to be sure
		if _, err := d.Repair(context.Background()); err != nil {
			b.Fatal(err)
		}
	}
	return d, path
}

func BenchmarkRepair(b *testing.B) {
	d, _ := filled(b)
	for b.Loop() {
		if r, err := d.Repair(context.Background()); err != nil || !r.Empty() {
			b.Fatal(r, err)
		}
	}
}

func BenchmarkChange(b *testing.B) {
	d, path := filled(b)
	g, err := d.Attach(context.Background(), nil)
	if err != nil {
		b.Fatal(err)
	}
	defer g.Close()
	for _, c := range []struct {
		name string
		f    func() error
	}{
		{"nothing", func() error { return nil }},
		{"one", func() error {
			write(b, secretKey("x"), path, object("x"))
			return nil
		}},
	} {
		b.Run(c.name, func(b *testing.B) {
			for b.Loop() {
				if err := g.Change(context.Background(), c.f); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
