package softhsm

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"time"
)

var (
	noTime time.Time
	// never is the time of a copy whose time says nothing.
	never = time.Unix(0, 0)
)

// A copy bears the modification time of what it is a copy of, so that one look at both tells
// whether they are the same. Clocks of file systems tick every 4 ms or so: a file that was changed
// so shortly before it was copied may change again and show the same time. Its copy bears none
// until it has been compared once more.
const tick = 20 * time.Millisecond

// pass is one round of looking at files and putting them right, with the change lock held. After
// it, finish makes the names durable.
type pass struct {
	dir      *Dir
	destroys bool            // what is missing was destroyed on purpose
	gone     []ref           // what is, with copies that are still there
	dirty    map[string]step // directories whose names changed
	back     map[string]bool // tokens with files that were put back
	report   Report
}

func newPass(d *Dir) *pass {
	return &pass{dir: d, dirty: map[string]step{}, back: map[string]bool{}}
}

// settle undoes a change that was to be kept whole and was interrupted, then looks at the files.
func (p *pass) settle(c changes) error {
	undone, err := p.rollback()
	if err != nil {
		return err
	}
	c.all = c.all || undone
	return p.lookAt(c)
}

// lookAt looks at what changed, and forgets what was destroyed once everything else is copied: a new
// object may have taken the place of an old one, and until it is durable the copy of the old one is all
// that there is. So an object that was not finished undoes the destruction of others, too.
func (p *pass) lookAt(c changes) error {
	look := p.lookAtNamed
	if c.all {
		look = p.lookAtAll
	}
	if err := look(c); err != nil {
		return err
	}
	if p.report.damaged() {
		return nil
	}
	return p.forget()
}

// lookAtNamed looks at single files. One that cannot be put right does not keep the others from it.
func (p *pass) lookAtNamed(c changes) error {
	var errs []error
	for r := range c.named {
		errs = append(errs, p.look(r))
	}
	return errors.Join(errs...)
}

// lookAtAll looks at every file that differs from its copy at a glance.
func (p *pass) lookAtAll(changes) error {
	tokens, err := subdirs(p.dir.join(tokensName))
	if err != nil {
		return err
	}
	shadowed, err := subdirs(p.dir.join(shadowName))
	if err != nil {
		return err
	}
	tokens = append(tokens, shadowed...)
	slices.Sort(tokens)
	var errs []error
	for _, t := range slices.Compact(tokens) {
		errs = append(errs, p.lookAtToken(t))
	}
	return errors.Join(errs...)
}

func (p *pass) lookAtToken(token string) error {
	names := map[string]bool{tokenObject: true}
	for _, dir := range []string{tokensName, shadowName} {
		list, err := files(p.dir.join(dir, token))
		if err != nil {
			return err
		}
		for _, n := range list {
			switch {
			case isObject(n):
				names[n] = true
			case dir == shadowName && strings.HasSuffix(n, tmpSuffix):
				// Never finished: the file that it was to be a copy of still is as it was.
				if err := os.Remove(p.dir.shadowFile(ref{token, n})); err != nil {
					return err
				}
			}
		}
	}
	var errs []error
	for _, n := range slices.Sorted(maps.Keys(names)) {
		r := ref{token, n}
		if !p.seemsCopied(r) {
			errs = append(errs, p.look(r))
		}
	}
	return errors.Join(errs...)
}

// seemsCopied compares sizes and times.
func (p *pass) seemsCopied(r ref) bool {
	file, err := os.Lstat(p.dir.objectFile(r))
	if err != nil {
		return false
	}
	shadow, err := os.Lstat(p.dir.shadowFile(r))
	return err == nil && file.Size() == shadow.Size() && file.ModTime().Equal(shadow.ModTime())
}

// content is what is found under a name.
type content struct {
	data  []byte
	mtime time.Time
	gone  bool  // nothing is there
	torn  error // why it is not whole
}

func (c content) whole() bool { return !c.gone && c.torn == nil }

// read reads a file of the token, or its copy. An error is one of the system: it says nothing
// about the file.
//
// Closing a descriptor drops the fcntl locks that SoftHSM, in this process, may have on the file.
// They guard against writers, and the change lock keeps all of those away.
func read(path string, r ref) (content, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return content{gone: true}, nil
	}
	if err != nil {
		return content{}, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return content{}, err
	}
	c := content{mtime: st.ModTime()}
	if c.data, err = io.ReadAll(f); err != nil {
		return content{}, err
	}
	if r.name == tokenObject {
		c.torn = checkToken(c.data)
	} else {
		c.torn = checkObject(c.data)
	}
	return c, nil
}

// look compares a file with its copy and puts right whichever is behind.
func (p *pass) look(r ref) error {
	file, err := read(p.dir.objectFile(r), r)
	if err != nil {
		return err
	}
	defer clear(file.data)
	shadow, err := read(p.dir.shadowFile(r), r)
	if err != nil {
		return err
	}
	defer clear(shadow.data)

	switch {
	case file.whole() && shadow.whole() && bytes.Equal(file.data, shadow.data):
		return p.stamp(r, file, shadow)
	case file.whole():
		return p.copy(r, file)
	case file.gone && p.destroys && r.name != tokenObject:
		p.gone = append(p.gone, r)
		return nil
	case shadow.whole():
		return p.restore(r, shadow)
	case r.name == tokenObject:
		return fmt.Errorf("%w, and there is no good copy of it: %s: put it back from a backup, "+
			"or move the token away if it was never used", ErrTorn, p.dir.objectFile(r))
	}
	if !shadow.gone {
		if err := p.giveUp(r); err != nil {
			return err
		}
	}
	if file.gone {
		return nil
	}
	return p.quarantine(r)
}

// giveUp moves a copy aside that is itself no good, when it would be needed. The key is lost:
// that is its tenant's loss, and nothing that should stop the others.
func (p *pass) giveUp(r ref) error {
	if err := makeDir(p.dir.join(quarantineName, r.token)); err != nil {
		return err
	}
	p.report.Lost = append(p.report.Lost, r.String())
	return p.moveAside(p.dir.shadowFile(r), p.dir.join(quarantineName, r.token, r.name+".copy"))
}

// stamp gives a copy the time of its file, once that time is told apart from a later one.
func (p *pass) stamp(r ref, file, shadow content) error {
	if t := stampOf(file.mtime); !shadow.mtime.Equal(t) {
		return os.Chtimes(p.dir.shadowFile(r), noTime, t)
	}
	return nil
}

func stampOf(mtime time.Time) time.Time {
	if time.Since(mtime) < tick { // also where the clock was set back
		return never
	}
	return mtime
}

// copy makes a file durable as it is, and its copy at the same time, since a disk does two fsyncs in
// the time of one:
//
//	openat(tokens/T/F); fsync
//	replace(shadow/T/F)
//	fsync(tokens/T), fsync(shadow/T), by finish
func (p *pass) copy(r ref, file content) error {
	if skipped(copyToShadow) {
		return nil
	}
	f, err := os.Open(p.dir.objectFile(r))
	if err != nil {
		return err
	}
	defer f.Close()
	synced := make(chan error, 1)
	go func() { synced <- syncFile(f, syncObject) }()
	err = p.copyTo(r, file)
	if err := errors.Join(err, <-synced); err != nil {
		return err
	}
	p.dirty[p.dir.join(tokensName, r.token)] = syncObjectDir
	p.dirty[p.dir.join(shadowName, r.token)] = syncShadowDir
	p.report.Adopted = append(p.report.Adopted, r.String())
	return nil
}

func (p *pass) copyTo(r ref, file content) error {
	if err := makeDir(p.dir.join(shadowName, r.token)); err != nil {
		return err
	}
	path := p.dir.shadowFile(r)
	if err := replace(path+tmpSuffix, path, file.data, stampOf(file.mtime), syncShadow); err != nil {
		return fmt.Errorf("copy %s to the shadow: %w", r, err)
	}
	return nil
}

// restore puts a file back from its copy, under the name that modules open at their next use. It
// is written in the shadow's directory: in the token's nothing of ours ever appears.
//
//	replace(shadow/T/F), with the generation that modules have not seen
//	replace(tokens/T/F)
//	fsync(tokens/T), fsync(shadow/T), by finish
func (p *pass) restore(r ref, shadow content) error {
	if err := makeDir(p.dir.join(tokensName, r.token)); err != nil {
		return err
	}
	// C_DestroyObject removes the object's lock file and fails where there is none.
	lock, err := os.OpenFile(p.dir.lockOf(r), os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("restore %s: %w", r, err)
	}
	if err := lock.Close(); err != nil {
		return err
	}
	renew(shadow.data)
	path := p.dir.shadowFile(r)
	err = replace(path+tmpSuffix, path, shadow.data, never, syncShadow)
	if err == nil {
		err = replace(path+tmpSuffix, p.dir.objectFile(r), shadow.data, noTime, syncRestore)
	}
	if err != nil {
		return fmt.Errorf("restore %s: %w", r, err)
	}
	p.dirty[p.dir.join(tokensName, r.token)] = syncObjectDir
	p.dirty[p.dir.join(shadowName, r.token)] = syncShadowDir
	p.back[r.token] = true
	p.report.Restored = append(p.report.Restored, r.String())
	return nil
}

// forget drops the copies of what was destroyed.
func (p *pass) forget() error {
	for _, r := range p.gone {
		p.dirty[p.dir.join(tokensName, r.token)] = syncObjectDir
		if err := os.Remove(p.dir.shadowFile(r)); errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return err
		}
		p.dirty[p.dir.join(shadowName, r.token)] = syncShadowDir
	}
	return nil
}

// finish makes the names durable that the pass changed. Nothing of a pass counts before.
func (p *pass) finish() error {
	synced := make(chan error)
	for dir, step := range p.dirty {
		go func() { synced <- syncDir(dir, step) }()
	}
	var errs []error
	for range p.dirty {
		if err := <-synced; !errors.Is(err, fs.ErrNotExist) { // a token that was moved aside
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	clear(p.dirty)
	for token := range p.back {
		if err := p.tell(token); err != nil {
			return err
		}
	}
	clear(p.back)
	return nil
}

// tell has living modules look into a token's directory again: those that saw a file go would not see
// it come back. They read a counter for that, which SoftHSM raises by one, under a lock; a larger step
// is one that none of them makes at the same time.
func (p *pass) tell(token string) error {
	path := p.dir.objectFile(ref{token, generationName})
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(b) != 8 {
		return nil // a module that cannot read it looks anyway
	}
	if err != nil {
		return fmt.Errorf("tell modules of what was put back: %w", err)
	}
	renew(b)
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("tell modules of what was put back: %w", err)
	}
	_, err = f.WriteAt(b, 0)
	return errors.Join(err, f.Close())
}
