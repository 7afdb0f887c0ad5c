// Command recheck judges a saved history again, and says in words what in it cannot be:
//
//	go run ./softhsm-tests/history/recheck FILE
//
// Beside FILE it puts a page for each tenant whose commands and reads have no order, which shows them in
// time. It ends with status 1 if something cannot be, and with 2 if FILE is no history.
package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/kekd/kekd/softhsm-tests/history"
)

func main() {
	if len(os.Args) != 2 || os.Args[1] == "" {
		fmt.Fprintln(os.Stderr, "usage: recheck FILE, or make recheck FILE=...")
		os.Exit(2)
	}
	passed, err := run(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, "recheck:", err)
		os.Exit(2)
	}
	if !passed {
		os.Exit(1)
	}
}

func run(path string) (passed bool, err error) {
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	h, err := history.Load(f)
	if err != nil {
		return false, fmt.Errorf("%s: %w", path, err)
	}
	fmt.Printf("%s: %d operations of %s, KEKD_SEED=%d\n", path, len(h.Operations), h.Name, h.Seed)
	violations := history.Judge(h)
	for i, v := range violations {
		fmt.Printf("%d. %v\n", i+1, v)
		if v.Drawable() {
			if err := draw(v, fmt.Sprintf("%s.%s.html", path, v.Tenant)); err != nil {
				return false, err
			}
		}
	}
	if len(violations) == 0 {
		fmt.Println("all of it can be")
	}
	return len(violations) == 0, nil
}

func draw(v history.Violation, page string) error {
	f, err := os.Create(page)
	if err != nil {
		return err
	}
	if err := errors.Join(v.Draw(f), f.Close()); err != nil {
		return err
	}
	fmt.Println("   drawn in", page)
	return nil
}
