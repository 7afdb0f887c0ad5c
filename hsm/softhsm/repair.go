package softhsm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Report says what was put right, by token and file name. It is for the log and the audit.
type Report struct {
	Restored    []string // torn or missing, put back from the shadow
	Quarantined []string // never acknowledged, moved aside
	Adopted     []string // whole, but not yet in the shadow as they are; now they are
	Lost        []string // acknowledged, and neither the file nor its copy is whole: a fault of the disk
}

// Empty tells whether nothing had to be done.
func (r Report) Empty() bool { return !r.damaged() && len(r.Adopted) == 0 }

// damaged tells whether a file was not as its writer left it.
func (r Report) damaged() bool { return len(r.Restored)+len(r.Quarantined)+len(r.Lost) > 0 }

func (r Report) String() string {
	var parts []string
	for _, p := range []struct {
		done  string
		files []string
	}{{"restored", r.Restored}, {"quarantined", r.Quarantined}, {"adopted", r.Adopted}, {"lost", r.Lost}} {
		if len(p.files) > 0 {
			parts = append(parts, p.done+" "+strings.Join(p.files, " "))
		}
	}
	if len(parts) == 0 {
		return "nothing to repair"
	}
	return strings.Join(parts, "; ")
}

// Texts says it in texts of limit bytes at most, for records that would be cut: what was lost comes
// first, and every file is in one of them. A file's name takes some 90 bytes with what was done.
func (r Report) Texts(limit int) (texts []string) {
	for _, p := range []struct {
		done  string
		files []string
	}{{"lost", r.Lost}, {"restored", r.Restored}, {"quarantined", r.Quarantined}, {"adopted", r.Adopted}} {
		text := ""
		for _, f := range p.files {
			if text != "" && len(text)+1+len(f) > limit {
				texts, text = append(texts, text), ""
			}
			if text == "" {
				text = p.done
			}
			text += " " + f
		}
		if text != "" {
			texts = append(texts, text)
		}
	}
	return texts
}

// Repair puts right what a crash left behind. It is for the start, before any process loads the
// module, and takes the directory lock alone: ErrInUse, with who holds it as far as known, if that
// cannot be had before ctx ends. Where another node's daemon works on the same directory it never
// can; [Dir.Attach] then does what may be done beside it.
//
// ErrTorn means that a token.object is torn and has no good copy: no fresh token is ever made in
// its place. The report says what was done all the same.
func (d *Dir) Repair(ctx context.Context) (Report, error) {
	alone, err := openLock(d.join(dirLockName))
	if err != nil {
		return Report{}, fmt.Errorf("%w: %w", ErrGone, err)
	}
	defer alone.Close()
	if err := alone.lock(ctx, unix.LOCK_EX); err != nil {
		return Report{}, blocked(alone, err, ErrInUse)
	}
	change, err := openLock(d.join(changeLockName))
	if err != nil {
		return Report{}, fmt.Errorf("%w: %w", ErrGone, err)
	}
	defer change.Close()
	if err := change.lock(ctx, unix.LOCK_EX); err != nil {
		return Report{}, blocked(change, err, ErrBusy)
	}
	p := newPass(d)
	err = errors.Join(p.settle(changes{all: true}), p.generations(), p.finish())
	if err != nil {
		err = fmt.Errorf("repair %s: %w", d.path, err)
	}
	return p.report, err
}

// blocked says why a lock was not had.
func blocked(l lockFile, err, kind error) error {
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return fmt.Errorf("%w: %s is held by %s: %w", kind, l.Name(), l.holders(), err)
	}
	return err
}

// generations moves away the counters by which processes notice each other's changes, if torn:
// SoftHSM makes a new one, but with a torn one it reads the whole directory at each call.
func (p *pass) generations() error {
	tokens, err := subdirs(p.dir.join(tokensName))
	if err != nil {
		return err
	}
	for _, t := range tokens {
		r := ref{t, generationName}
		st, err := os.Lstat(p.dir.objectFile(r))
		if err != nil || st.Size() == 0 || st.Size() == 8 {
			continue
		}
		if err := p.quarantine(r); err != nil {
			return err
		}
	}
	return nil
}

// quarantine moves a file of a token aside.
func (p *pass) quarantine(r ref) error {
	if err := makeDir(p.dir.join(quarantineName, r.token)); err != nil {
		return err
	}
	if err := p.moveAside(p.dir.objectFile(r), p.dir.join(quarantineName, r.token, r.name)); err != nil {
		return err
	}
	// Nobody else would ever take its lock file away.
	if err := os.Remove(p.dir.lockOf(r)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	p.report.Quarantined = append(p.report.Quarantined, r.String())
	return nil
}

// moveAside renames from to the first free name at to, to.1, to.2 and so on.
func (p *pass) moveAside(from, to string) error {
	name := to
	for n := 1; ; n++ {
		err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, name, unix.RENAME_NOREPLACE)
		if errors.Is(err, os.ErrExist) {
			name = fmt.Sprintf("%s.%d", to, n)
			continue
		}
		if err != nil {
			return fmt.Errorf("quarantine %s: %w", from, err)
		}
		p.dirty[filepath.Dir(from)] = syncObjectDir
		p.dirty[filepath.Dir(to)] = syncRoot
		return nil
	}
}
