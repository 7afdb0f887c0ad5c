package cluster

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/state"
)

// errDamaged is wrapped by what is wrong with a store. What users see is [ErrDamaged].
var errDamaged = errors.New("damaged")

// ErrDamaged means that what a directory holds cannot be trusted. The error says what and where.
// No part of it is repaired or skipped: what would be lost may be a disable.
var ErrDamaged = errors.New("the cluster's data is damaged")

// boltOptions are those of both stores. Every transaction is synced (bbolt's default), the list of
// free pages included, so that opening needs no scan.
func boltOptions() *bbolt.Options {
	return &bbolt.Options{
		// The directory is locked already. If somebody else holds the file nevertheless, say so.
		Timeout:      time.Second,
		FreelistType: bbolt.FreelistMapType,
	}
}

// stores are what a node has on disk.
type stores struct {
	dir    string
	log    *logStore
	bolt   *raftboltdb.BoltStore
	stable *stableStore
	snaps  *raft.FileSnapshotStore

	begin *state.State // what the newest snapshot holds, for the state machine to begin with
}

func openStores(dir string, cfg Config) (_ *stores, err error) {
	s := &stores{dir: dir, begin: state.New()}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	for _, part := range []struct {
		name string
		open func(path string) error
	}{
		{logFile, func(path string) (err error) {
			s.log, err = openLogStore(path)
			return err
		}},
		{stableFile, func(path string) (err error) {
			s.bolt, err = raftboltdb.New(raftboltdb.Options{Path: path, BoltOptions: boltOptions()})
			return err
		}},
		{snapshotDir, func(string) (err error) {
			s.snaps, err = raft.NewFileSnapshotStoreWithLogger(dir, keptSnapshots, raftLogger(cfg.Logger))
			return err
		}},
	} {
		if err := recovered(func() error { return part.open(filepath.Join(dir, part.name)) }); err != nil {
			return nil, fmt.Errorf("%s: %w", part.name, err)
		}
	}
	s.stable = &stableStore{s.bolt}
	return s, nil
}

func (s *stores) close() error {
	var errs []error
	if s.log != nil {
		errs = append(errs, s.log.Close())
	}
	if s.bolt != nil {
		errs = append(errs, s.bolt.Close())
	}
	return errors.Join(errs...)
}

// openVerified opens the stores of a directory and reads all that is in them, so that damage is
// found now and not when raft panics over it.
func openVerified(dir string, cfg Config, id identity) (s *stores, err error) {
	for _, name := range []string{logFile, stableFile} {
		// One that is missing, or empty, would be made anew.
		info, err := os.Stat(filepath.Join(dir, name))
		if err == nil && info.Size() == 0 {
			err = fmt.Errorf("%w: it is empty", errDamaged)
		}
		if err != nil {
			return nil, damaged(dir, name, err)
		}
	}
	at := "" // openStores names the file itself
	err = recovered(func() error {
		if s, err = openStores(dir, cfg); err != nil {
			return err
		}
		at = snapshotDir
		snapshot, err := s.verifySnapshots(id.Cluster)
		if err != nil {
			return err
		}
		at = stableFile
		term, err := s.stable.verify()
		if err != nil {
			return err
		}
		at = logFile
		return s.verifyLog(snapshot, term, id.Joined)
	})
	if err != nil {
		if s != nil {
			s.close()
		}
		return nil, damaged(dir, at, err)
	}
	return s, nil
}

// damaged says what to do. A file that may not be read is not damaged, nor is one that is in use.
func damaged(dir, name string, err error) error {
	if errors.Is(err, os.ErrPermission) || errors.Is(err, berrors.ErrTimeout) {
		return fmt.Errorf("open %s: %w", filepath.Join(dir, name), err)
	}
	return fmt.Errorf("%w: %s: %w; restore the directory from a backup of this node, or remove the node from the cluster and let it join again", ErrDamaged, filepath.Join(dir, name), err)
}

// recovered turns what bbolt does on a damaged file, a panic or a fault in mapped memory, into an
// error.
func recovered(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: %v", errDamaged, r)
		}
	}()
	return f()
}

// verifySnapshots reads the newest snapshot, the only time that it is read at a start. Raft would go back
// to an older one if it cannot be read, and to none if its description cannot.
func (s *stores) verifySnapshots(cluster hierarchy.ClusterID) (*raft.SnapshotMeta, error) {
	dir := filepath.Join(s.dir, snapshotDir)
	there, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	complete := 0
	for _, e := range there {
		switch {
		case !e.IsDir():
		case strings.HasSuffix(e.Name(), ".tmp"):
			// A crash while it was written. Raft leaves it lying for ever.
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				return nil, err
			}
		default:
			complete++
		}
	}
	list, err := s.snaps.List()
	if err != nil {
		return nil, err
	}
	if len(list) != min(complete, keptSnapshots) {
		return nil, fmt.Errorf("%w: %d snapshots are there and %d can be read", errDamaged, complete, len(list))
	}
	if len(list) == 0 {
		return nil, nil
	}
	meta, source, err := s.snaps.Open(list[0].ID)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", list[0].ID, err)
	}
	defer source.Close()
	st, err := state.Read(source)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", list[0].ID, err)
	}
	if st.ClusterID() != cluster {
		return nil, fmt.Errorf("%w: %s is of cluster %s, this node is of cluster %s", errDamaged, list[0].ID, st.ClusterID(), cluster)
	}
	if st.Index() > meta.Index {
		return nil, fmt.Errorf("%w: %s ends at %d, its state is at %d", errDamaged, list[0].ID, meta.Index, st.Index())
	}
	s.begin = st
	return meta, nil
}

// verifyLog reads every entry. Behind the snapshot none may be missing; before it there may be
// gaps, which a snapshot from the leader leaves. Only a node that joined may have none at all.
func (s *stores) verifyLog(snapshot *raft.SnapshotMeta, term uint64, mayBeEmpty bool) error {
	var covered, lastTerm uint64
	if snapshot != nil {
		covered, lastTerm = snapshot.Index, snapshot.Term
	}
	last := covered
	err := s.log.walk(func(log *raft.Log) error {
		if log.Index <= covered {
			return nil
		}
		if log.Index != last+1 {
			return fmt.Errorf("%w: entry %d follows entry %d", errDamaged, log.Index, last)
		}
		if log.Term < lastTerm || log.Term > term {
			return fmt.Errorf("%w: entry %d is of term %d, after term %d and in term %d", errDamaged, log.Index, log.Term, lastTerm, term)
		}
		last, lastTerm = log.Index, log.Term
		return nil
	})
	if err == nil && last == 0 && !mayBeEmpty {
		err = fmt.Errorf("%w: it is empty, and there is no snapshot", errDamaged)
	}
	return err
}
