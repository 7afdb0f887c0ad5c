package pkcs11

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hsm"
)

// An index knows the token's key objects by their IDs. It is filled by one listing at start:
// a search by ID costs 10 us for each object on the token (SoftHSM 2.6.1), so the hot path
// never searches.
type index struct {
	mu      sync.RWMutex
	byID    map[hierarchy.ObjectID]*entry
	records map[pkcs11.ObjectHandle]record
	absent  map[hierarchy.ObjectID]time.Time // looked for and not there, and when
}

// An entry is the key that answers to an ID. Its fields are guarded by index.mu, except the
// atomic ones.
type entry struct {
	id       hierarchy.ObjectID
	handle   pkcs11.ObjectHandle
	twins    []pkcs11.ObjectHandle // more handles with the same check value, to be shown to be the same key
	obj      hsm.Object
	hasCheck bool
	tested   bool      // known-answer test passed since the object was last found changed
	checked  time.Time // when the attributes were read
	stale    bool      // they are to be read again before the next use

	copy   pkcs11.ObjectHandle // session copy; 0: none. Destroyed only under Token.use
	proved bool                // a copy passed the test in place of the object: it may be used, the object not yet
	noCopy bool                // the token refused to copy it

	uses    atomic.Uint32
	lastUse atomic.Int64 // unix nanoseconds
}

const (
	absentFor   = time.Second // how long an ID that was not found is not looked for again
	absentLimit = 4096
	latchedFor  = 100 * time.Millisecond // how long a latch that was read is believed
)

func newIndex() *index {
	return &index{
		byID:    map[hierarchy.ObjectID]*entry{},
		records: map[pkcs11.ObjectHandle]record{},
		absent:  map[hierarchy.ObjectID]time.Time{},
	}
}

// group makes one key of all handles that answer to an ID, or says that they are several:
// handles may be several for one object, and are one key if their check values agree and each
// opens what the other sealed, which is tested before the first use.
func group(records []record) (first record, twins []pkcs11.ObjectHandle) {
	first = records[0]
	for _, r := range records[1:] {
		if r.obj.Fault != nil || first.obj.Fault != nil || !r.hasCheck || r.obj.Check != first.obj.Check || r.obj.Bridge != first.obj.Bridge {
			first.obj.Fault = ambiguous(first.obj.ID, len(records))
			return first, nil
		}
		first.obj.Usable = first.obj.Usable && r.obj.Usable
		twins = append(twins, r.handle)
	}
	return first, twins
}

func ambiguous(id hierarchy.ObjectID, n int) error {
	return fmt.Errorf("%w: %d key objects under %s", hsm.ErrAmbiguous, n, id)
}

// record is what was read of a handle before.
func (x *index) record(h pkcs11.ObjectHandle) (record, bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	r, ok := x.records[h]
	return r, ok
}

// settled tells whether a listing can be believed at once: it lacks no key that was there, and
// refuses no object that it did not refuse before. With SoftHSM 2.6.1 an object that another
// process rewrites is missing for a moment (from one listing in ten beside a process that latches
// without a pause), and one that it generates is half-made for 5 ms.
func (x *index) settled(listing []record) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	seen := make(map[hierarchy.ObjectID]struct{}, len(listing))
	for _, r := range listing {
		if len(r.obj.RawID) != len(r.obj.ID) {
			continue // foreign
		}
		seen[r.obj.ID] = struct{}{}
		if r.obj.Fault != nil && x.records[r.handle].obj.Fault == nil {
			return false
		}
	}
	for id := range x.byID {
		if _, ok := seen[id]; !ok {
			return false
		}
	}
	return true
}

// knows tells whether a key answered to an ID when the token was last looked at.
func (x *index) knows(id hierarchy.ObjectID) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.byID[id] != nil
}

// untested tells whether a key needs a test before what serves it, copy or object, is used. The caller holds mu
// for reading.
func (e *entry) untested() bool { return !e.tested && (e.copy == 0 || !e.proved) }

// replace takes a whole listing in. It returns the session copies whose originals are gone.
func (x *index) replace(listing []record, now time.Time) (orphans []pkcs11.ObjectHandle) {
	groups := map[hierarchy.ObjectID][]record{}
	records := make(map[pkcs11.ObjectHandle]record, len(listing))
	for _, r := range listing {
		records[r.handle] = r
		if len(r.obj.RawID) == len(r.obj.ID) {
			groups[r.obj.ID] = append(groups[r.obj.ID], r)
		}
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.records = records
	for id, e := range x.byID {
		if _, still := groups[id]; !still {
			orphans = x.drop(e, orphans)
		}
	}
	for id, g := range groups {
		orphans = append(orphans, x.put(id, g, now)...)
	}
	return orphans
}

// put takes in what answers to one ID. The caller holds mu.
func (x *index) put(id hierarchy.ObjectID, g []record, now time.Time) (orphans []pkcs11.ObjectHandle) {
	delete(x.absent, id)
	first, twins := group(g)
	e := x.byID[id]
	if e != nil && (e.obj.Check != first.obj.Check || !slices.ContainsFunc(g, func(r record) bool { return r.handle == e.handle })) {
		orphans = x.drop(e, nil)
		e = nil
	}
	if e == nil {
		e = &entry{id: id, handle: first.handle}
		x.byID[id] = e
	}
	if len(twins) > 0 && !slices.Equal(twins, e.twins) || first.obj.Fault != nil {
		e.tested, e.proved = false, false
	}
	e.handle, e.twins, e.obj, e.hasCheck, e.checked = first.handle, twins, first.obj, first.hasCheck, now
	e.stale = false
	return orphans
}

// drop forgets an entry. The caller holds mu.
func (x *index) drop(e *entry, orphans []pkcs11.ObjectHandle) []pkcs11.ObjectHandle {
	if x.byID[e.id] == e {
		delete(x.byID, e.id)
	}
	delete(x.records, e.handle)
	for _, h := range e.twins {
		delete(x.records, h)
	}
	if e.copy != 0 {
		orphans = append(orphans, e.copy)
		e.copy = 0
	}
	return orphans
}

// forget sees to it that what is known of keys is read again before they are used: a key that is
// gone is dropped then, and one that has come is found. What was refused is forgotten altogether:
// it may have been half-made when it was read. The copies are destroyed already.
func (x *index) forget(ids []hierarchy.ObjectID) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, id := range ids {
		delete(x.absent, id)
		e := x.byID[id]
		if e == nil {
			continue
		}
		if e.obj.Fault != nil {
			x.drop(e, nil)
			continue
		}
		e.stale = true
		delete(x.records, e.handle)
		for _, h := range e.twins {
			delete(x.records, h)
		}
	}
}

// miss notes that IDs were looked for and are not there.
func (x *index) miss(ids []hierarchy.ObjectID, now time.Time) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if len(x.absent)+len(ids) > absentLimit {
		clear(x.absent)
	}
	for _, id := range ids {
		if x.byID[id] == nil {
			x.absent[id] = now
		}
	}
}
