package softhsm

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
)

// A change that makes several files which are of use only together (a key pair, a token) is
// announced by an intent: the list of the files that were there before. It is durable before the
// change begins, and its removal is what acknowledges the change. Whoever finds one undoes the
// change: what is not on the list goes to the quarantine.
//
// Without it, the public half of a pair alone looks like any other object.

// writeIntent lists what is there.
//
//	replace(intent)
//	fsync(DIR)
func (d *Dir) writeIntent() error {
	tokens, err := subdirs(d.join(tokensName))
	if err != nil {
		return err
	}
	var list strings.Builder
	for _, t := range tokens {
		names, err := files(d.join(tokensName, t))
		if err != nil {
			return err
		}
		for _, n := range names {
			if isObject(n) {
				fmt.Fprintln(&list, ref{t, n})
			}
		}
	}
	path := d.join(intentName)
	if err := replace(path+tmpSuffix, path, []byte(list.String()), noTime, syncIntent); err != nil {
		return fmt.Errorf("announce the change: %w", err)
	}
	return syncDir(d.path, syncRoot)
}

// dropIntent acknowledges the change, or that it was undone.
func (d *Dir) dropIntent() error {
	if err := os.Remove(d.join(intentName)); err != nil {
		return err
	}
	return syncDir(d.path, syncRoot)
}

// readIntent returns the files that were there when the change began, and false if there is none.
func (d *Dir) readIntent() (map[ref]bool, bool, error) {
	text, err := os.ReadFile(d.join(intentName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	before := map[ref]bool{}
	for line := range strings.Lines(string(text)) {
		token, name, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "/")
		if !ok || !strings.HasSuffix(line, "\n") {
			return nil, false, fmt.Errorf("%w: %s", ErrTorn, d.join(intentName))
		}
		before[ref{token, name}] = true
	}
	return before, true, nil
}

// rollback undoes an announced change, and tells whether there was one. It may itself be
// interrupted: the intent goes last.
func (p *pass) rollback() (bool, error) {
	before, found, err := p.dir.readIntent()
	if err != nil || !found {
		return false, err
	}
	for _, undo := range []func(map[ref]bool) error{p.undoTokens, p.undoCopies} {
		if err := undo(before); err != nil {
			return false, fmt.Errorf("undo an interrupted change: %w", err)
		}
	}
	if err := p.finish(); err != nil {
		return false, err
	}
	return true, p.dir.dropIntent()
}

// undoTokens moves new tokens and new objects to the quarantine.
func (p *pass) undoTokens(before map[ref]bool) error {
	tokens, err := subdirs(p.dir.join(tokensName))
	if err != nil {
		return err
	}
	for _, t := range tokens {
		if !before[ref{t, tokenObject}] {
			if err := p.moveAside(p.dir.join(tokensName, t), p.dir.join(quarantineName, t)); err != nil {
				return err
			}
			p.report.Quarantined = append(p.report.Quarantined, t)
			continue
		}
		names, err := files(p.dir.join(tokensName, t))
		if err != nil {
			return err
		}
		for _, n := range names {
			if r := (ref{t, n}); isObject(n) && !before[r] {
				if err := p.quarantine(r); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// undoCopies removes what the shadow already holds of them.
func (p *pass) undoCopies(before map[ref]bool) error {
	tokens, err := subdirs(p.dir.join(shadowName))
	if err != nil {
		return err
	}
	for _, t := range tokens {
		dir := p.dir.join(shadowName, t)
		if !before[ref{t, tokenObject}] {
			if err := os.RemoveAll(dir); err != nil {
				return err
			}
			p.dirty[p.dir.join(shadowName)] = syncRoot
			continue
		}
		names, err := files(dir)
		if err != nil {
			return err
		}
		for _, n := range names {
			if r := (ref{t, n}); isObject(n) && !before[r] {
				if err := os.Remove(p.dir.shadowFile(r)); err != nil {
					return err
				}
				p.dirty[dir] = syncShadowDir
			}
		}
	}
	return nil
}
