package pkcs11

import (
	"errors"
	"fmt"
	"path/filepath"
	"sync"

	"github.com/miekg/pkcs11"

	"github.com/kekd/kekd/hsm"
)

// A module is a PKCS#11 library as this process has it. The library has one state for the
// whole process, so there is one of these for each path.
type module struct {
	path string
	ctx  *pkcs11.Ctx
	fns  functions

	// changes is held while objects are found or changed: a generation beside a find failed
	// in 57 of 300 tries and left orphans (SoftHSM 2.6.1).
	changes sync.Mutex

	refs int  // guarded by modules.mu
	own  bool // this package initialised it and will finalise it; guarded by modules.mu
	hung bool // a call may still be running in it; guarded by modules.mu
}

var modules = struct {
	mu   sync.Mutex
	open map[string]*module
}{open: map[string]*module{}}

// acquire loads a module, and initialises it unless somebody else in this process has
// (crypto11 for the identity, who then also finalises it).
func acquire(path string) (*module, error) {
	if !filepath.IsAbs(path) {
		return nil, fmt.Errorf("%w: %q is not an absolute path", hsm.ErrNoModule, path)
	}
	modules.mu.Lock()
	defer modules.mu.Unlock()
	if m := modules.open[path]; m != nil {
		m.refs++
		return m, nil
	}
	fns, err := loadFunctions(path)
	if err != nil {
		return nil, err
	}
	m := &module{path: path, fns: fns, ctx: pkcs11.New(path), refs: 1, own: true}
	if m.ctx == nil {
		return nil, fmt.Errorf("%w: %s", hsm.ErrNoModule, path)
	}
	switch err := m.ctx.Initialize(); {
	case errors.Is(err, pkcs11.Error(pkcs11.CKR_CRYPTOKI_ALREADY_INITIALIZED)):
		m.own = false
	case err != nil:
		m.ctx.Destroy()
		return nil, fmt.Errorf("%w: %s does not initialise: %w", hsm.ErrNoModule, path, err)
	}
	modules.open[path] = m
	return m, nil
}

// release gives a module back. hung says that a call may still be running in it: then it is
// not finalised, since that would be a crash.
func (m *module) release(hung bool) error {
	modules.mu.Lock()
	defer modules.mu.Unlock()
	m.hung = m.hung || hung
	if m.refs--; m.refs > 0 || m.hung {
		return nil
	}
	delete(modules.open, m.path)
	defer m.ctx.Destroy()
	if m.own {
		if err := m.ctx.Finalize(); err != nil {
			return failure("finalise the module", err)
		}
	}
	return nil
}
