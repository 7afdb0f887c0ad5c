package cluster

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/hashicorp/raft"
	"golang.org/x/sys/unix"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/state"
)

// Recovery is what would become of a cluster that has lost its majority for ever, if it went on with one node.
//
// Raft's own recovery applies every entry in the log, also those whose proposers were told that they had failed. Here
// what is not known to have been committed may only close.
type Recovery struct {
	Position Mark          // where the node's disk stands: of several nodes, the one that is furthest is to go on
	Proved   uint64        // up to this index everything in the log was committed, as an entry of it shows
	Unproved []Unproved    // what comes after that, in order
	Lost     []*state.Node // the members that there will be no more, sorted by name
	Blind    bool          // it is not known what was closed: every tenant will be disabled

	cfg    Config
	id     identity
	lock   *os.File
	stores *stores
	mark   Mark
	state  *state.State // as it is known, before the next epoch
	last   uint64       // index of the log's last entry
}

// Unproved is a command that is not known to have been committed.
type Unproved struct {
	Index uint64
	What  string // its name in the protocol
	// Taken tells that it was applied, as far as it closes.
	Taken bool
}

// PlanRecovery looks at the directory of a node that does not run, and changes nothing. One that is behind its mark is
// [ErrRolledBack], and one without a mark is [ErrUnmarked], unless blind allows it: then nobody knows
// what was closed. Close has to be called.
func PlanRecovery(cfg Config, blind bool) (_ *Recovery, err error) {
	cfg = cfg.withDefaults()
	if err := cfg.check(); err != nil {
		return nil, err
	}
	if _, err := readIdentity(cfg.Dir); err != nil {
		return nil, err
	}
	r := &Recovery{cfg: cfg}
	defer func() {
		if err != nil {
			_ = r.Close()
		}
	}()
	if r.lock, err = lock(cfg.Dir); err != nil {
		return nil, err
	}
	if r.id, err = readIdentity(cfg.Dir); err != nil {
		return nil, err
	}
	if r.stores, err = openVerified(filepath.Join(cfg.Dir, raftDir), cfg, r.id); err != nil {
		return nil, err
	}
	if err := r.compareMark(blind); err != nil {
		return nil, err
	}
	if err := r.readLog(); err != nil {
		return nil, err
	}
	// Whether it can be done is better known now.
	if _, err := r.next([32]byte{}, ""); err != nil {
		return nil, err
	}
	for n := range r.state.Nodes() {
		if n.ID != r.id.Node {
			r.Lost = append(r.Lost, n)
		}
	}
	return r, nil
}

// Close lets go of the directory.
func (r *Recovery) Close() error {
	var errs []error
	if r.stores != nil {
		errs = append(errs, r.stores.close())
		r.stores = nil
	}
	if r.lock != nil {
		errs = append(errs, r.lock.Close())
		r.lock = nil
	}
	return errors.Join(errs...)
}

// State is the node's as far as it is known, before the next epoch.
func (r *Recovery) State() *state.State { return r.state }

func (r *Recovery) compareMark(blind bool) (err error) {
	if r.Position, err = r.stores.position(); err != nil || r.cfg.Marks == nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), markTimeout)
	defer cancel()
	mark, marked, err := r.cfg.Marks.Mark(ctx)
	if err != nil {
		return fmt.Errorf("this node's mark cannot be read: %w", err)
	}
	r.mark = mark
	switch {
	case marked && !r.Position.behind(mark):
		return nil
	case blind:
		r.Blind = true
		return nil
	case !marked:
		return fmt.Errorf("%w, so that nobody can tell whether the directory is an older one, and what was closed since", ErrUnmarked)
	}
	return fmt.Errorf("%w: it is at %s, and the node has answered for %s; what was closed since is not in it", ErrRolledBack, r.Position, mark)
}

// readLog applies what was committed, and of the rest what closes.
func (r *Recovery) readLog() error {
	covered := r.stores.begin.Index()
	snaps, err := r.stores.snaps.List()
	if err != nil {
		return err
	}
	if len(snaps) > 0 {
		covered = snaps[0].Index
	}
	r.Proved, r.last = covered, covered
	err = r.stores.log.walk(func(log *raft.Log) error {
		r.last = max(r.last, log.Index)
		if log.Type != raft.LogCommand {
			return nil
		}
		c, err := state.Decode(log.Data)
		if err != nil {
			return fmt.Errorf("entry %d of the log: %w", log.Index, err)
		}
		r.Proved = max(r.Proved, state.Proves(c))
		return nil
	})
	if err != nil {
		return err
	}
	r.state = r.stores.begin
	return r.stores.log.walk(func(log *raft.Log) error {
		if log.Index <= covered || log.Type != raft.LogCommand {
			return nil
		}
		return r.apply(log)
	})
}

func (r *Recovery) apply(log *raft.Log) error {
	c, err := state.Decode(log.Data)
	if err != nil {
		return fmt.Errorf("entry %d of the log: %w", log.Index, err)
	}
	meta := state.Meta{Index: log.Index}
	if log.Index <= r.Proved {
		next, res := state.Apply(r.state, meta, c)
		if state.Fatal(res.Err) {
			return fmt.Errorf("entry %d of the log: %w", log.Index, res.Err)
		}
		r.state = next
		return nil
	}
	next, took, err := state.ApplyClosing(r.state, meta, c)
	if err != nil {
		return fmt.Errorf("entry %d of the log: %w", log.Index, err)
	}
	r.state = next
	r.Unproved = append(r.Unproved, Unproved{log.Index, commandName(c), took})
	return nil
}

// next is the state of the next epoch.
func (r *Recovery) next(statement [32]byte, reason string) (*state.State, error) {
	return state.Recover(r.state, state.Recovery{Node: r.id.Node, Index: r.last + 1, Statement: statement, CloseAll: r.Blind, Reason: reason})
}

// Epoch is the one that begins.
func (r *Recovery) Epoch() uint64 { return r.state.Epoch() + 1 }

// Do begins the next epoch, all at once: until it has, the node is what it was. What it was is kept in a directory beside,
// which is returned.
//
// An epoch is a number and the hash of a statement. A random number in that tells two recoveries of one cluster
// apart, which must never meet again.
func (r *Recovery) Do(reason string) (kept string, err error) {
	hash := r.state.Hash()
	statement := sha256.Sum256(fmt.Appendf(nil, "kekd recovery v1\ncluster %s\nepoch %d\nnode %s\nindex %d\nstate %x\nrandom %s\nreason %s\n",
		r.id.Cluster, r.Epoch(), r.id.Node, r.last, hash, hierarchy.NewID(), reason))
	next, err := r.next(statement, reason)
	if err != nil {
		return "", err
	}
	// Higher than what anybody was told, so that the directory of before can never be started again.
	at := Mark{Term: max(r.Position.Term, r.mark.Term, r.mark.LastTerm) + 1, LastIndex: next.Index()}
	at.LastTerm = at.Term

	dir, building := filepath.Join(r.cfg.Dir, raftDir), filepath.Join(r.cfg.Dir, recovering)
	if err := os.RemoveAll(building); err != nil {
		return "", err
	}
	if err := os.Mkdir(building, 0o700); err != nil {
		return "", err
	}
	if err := build(building, r.id, func(to string) error { return r.fill(to, dir, at, next) }); err != nil {
		return "", errors.Join(fmt.Errorf("make the node in %s: %w", building, err), os.RemoveAll(building))
	}
	if err := r.stores.close(); err != nil {
		return "", err
	}
	r.stores = nil
	if err := unix.Renameat2(unix.AT_FDCWD, building, unix.AT_FDCWD, dir, unix.RENAME_EXCHANGE); err != nil {
		return "", fmt.Errorf("exchange %s and %s: %w", building, dir, err)
	}
	if err := syncDir(r.cfg.Dir); err != nil {
		return "", err
	}
	kept = fmt.Sprintf("%s.epoch-%d-%s", dir, r.state.Epoch(), r.cfg.Wall().UTC().Format("20060102T150405Z"))
	if err := errors.Join(os.Rename(building, kept), syncDir(r.cfg.Dir)); err != nil {
		return "", fmt.Errorf("the next epoch has begun, and what was before is in %s: %w", building, err)
	}
	return kept, r.setMark(at)
}

// recovering is a node of the next epoch that is not complete.
const recovering = "raft.recovered"

// fill makes a store that begins with a snapshot, of which this node is the only voter.
func (r *Recovery) fill(to, from string, at Mark, next *state.State) error {
	s, err := openStores(to, r.cfg)
	if err != nil {
		return err
	}
	self := raft.Configuration{Servers: []raft.Server{{Suffrage: raft.Voter, ID: serverID(r.id.Node), Address: serverAddress(r.id.Node)}}}
	_, nowhere := raft.NewInmemTransport(serverAddress(r.id.Node))
	write := func() error {
		if err := s.stable.SetUint64([]byte(keyCurrentTerm), at.Term); err != nil {
			return err
		}
		sink, err := s.snaps.Create(raft.SnapshotVersionMax, at.LastIndex, at.LastTerm, self, at.LastIndex, nowhere)
		if err != nil {
			return err
		}
		return snapshot{next}.Persist(sink)
	}
	if err := errors.Join(write(), s.close()); err != nil {
		return err
	}
	b, err := os.ReadFile(filepath.Join(from, runFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return replaceFile(filepath.Join(to, runFile), b)
}

// setMark comes after the disk, as always.
func (r *Recovery) setMark(m Mark) error {
	if r.cfg.Marks == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), markTimeout)
	defer cancel()
	if err := r.cfg.Marks.SetMark(ctx, m); err != nil {
		return fmt.Errorf("the next epoch has begun, and is not marked yet; kekd serve does that: %w", err)
	}
	return nil
}

// commandName is how a command is called in the protocol.
func commandName(c *commandpb.Command) string {
	m := c.ProtoReflect()
	return string(m.WhichOneof(m.Descriptor().Oneofs().ByName("body")).Name())
}
