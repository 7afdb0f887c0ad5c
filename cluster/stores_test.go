package cluster_test

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
	"pgregory.net/rapid"

	"github.com/kekd/kekd/cluster"
)

func entry(index, term uint64, data string) *raft.Log {
	return &raft.Log{Index: index, Term: term, Type: raft.LogCommand, Data: []byte(data), Extensions: []byte("x"), AppendedAt: time.Unix(0, int64(index))}
}

// contents reads a log store through its interface.
func contents(t interface {
	Helper()
	Fatal(...any)
}, s raft.LogStore) (out []raft.Log) {
	t.Helper()
	first, err := s.FirstIndex()
	if err != nil {
		t.Fatal(err)
	}
	last, err := s.LastIndex()
	if err != nil {
		t.Fatal(err)
	}
	for i := first; i <= last && last > 0; i++ {
		var l raft.Log
		if err := s.GetLog(i, &l); err == nil {
			out = append(out, l)
		} else if !errors.Is(err, raft.ErrLogNotFound) {
			t.Fatal(err)
		}
	}
	return out
}

// memoryDir is for tests that sync thousands of times and lose no power.
func memoryDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "kekd-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// The log store is raft's own in-memory one, also across reopening.
func TestLogStoreIsALog(t *testing.T) {
	t.Parallel()
	dir := memoryDir(t)
	n := 0
	rapid.Check(t, func(t *rapid.T) {
		n++
		path := filepath.Join(dir, fmt.Sprint(n))
		s, err := cluster.NewLogStore(path)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { s.Close() }()
		model := raft.NewInmemStore()
		for step := range rapid.IntRange(1, 12).Draw(t, "steps") {
			first, _ := model.FirstIndex()
			last, _ := model.LastIndex()
			switch rapid.IntRange(0, 3).Draw(t, "what") {
			case 0, 1: // append, as a leader does
				var logs []*raft.Log
				for i := range rapid.Uint64Range(1, 20).Draw(t, "entries") {
					logs = append(logs, entry(last+1+i, uint64(step), fmt.Sprint("data", step)))
				}
				if err := errors.Join(s.StoreLogs(logs), model.StoreLogs(logs)); err != nil {
					t.Fatal(err)
				}
			case 2: // compact
				if last > first {
					to := rapid.Uint64Range(first, last-1).Draw(t, "to")
					if err := errors.Join(s.DeleteRange(first, to), model.DeleteRange(first, to)); err != nil {
						t.Fatal(err)
					}
				}
			case 3: // a conflict: a suffix goes and another comes
				if last > first {
					from := rapid.Uint64Range(first+1, last).Draw(t, "from")
					if err := errors.Join(s.DeleteRange(from, last), model.DeleteRange(from, last)); err != nil {
						t.Fatal(err)
					}
					if diff := cmp.Diff(contents(t, model), contents(t, s)); diff != "" {
						t.Fatalf("after a suffix was deleted (-model +store):\n%s", diff)
					}
					l := []*raft.Log{entry(from, uint64(step+100), "other")}
					if err := errors.Join(s.StoreLogs(l), model.StoreLogs(l)); err != nil {
						t.Fatal(err)
					}
				}
			}
			if diff := cmp.Diff(contents(t, model), contents(t, s)); diff != "" {
				t.Fatalf("step %d (-model +store):\n%s", step, diff)
			}
		}
		s.Close()
		if s, err = cluster.NewLogStore(path); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(contents(t, model), contents(t, s)); diff != "" {
			t.Fatalf("reopened (-model +store):\n%s", diff)
		}
	})
}

// A crash between the deletion of a conflicting suffix and what takes its place must not leave a log
// that ends before what this node has acknowledged.
func TestConflictIsOneTransaction(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log.db")
	s, err := cluster.NewLogStore(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { s.Close() }()
	var old []*raft.Log
	for i := uint64(1); i <= 5; i++ {
		old = append(old, entry(i, 3, "old"))
	}
	if err := errors.Join(s.StoreLogs(old), s.DeleteRange(3, 5)); err != nil {
		t.Fatal(err)
	}
	if last, _ := s.LastIndex(); last != 2 {
		t.Errorf("raft sees entry %d as the last", last)
	}
	// What a crash here would find is what is in the file.
	s.Close()
	if s, err = cluster.NewLogStore(path); err != nil {
		t.Fatal(err)
	}
	if got := contents(t, s); len(got) != 5 || got[4].Term != 3 {
		t.Errorf("on disk are %v", got)
	}
	if err := errors.Join(s.DeleteRange(3, 5), s.StoreLog(entry(3, 2, "new"))); err != nil {
		t.Fatal(err)
	}
	s.Close()
	if s, err = cluster.NewLogStore(path); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]raft.Log{*old[0], *old[1], *entry(3, 2, "new")}, contents(t, s)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func boltStore(t *testing.T, path string) *raftboltdb.BoltStore {
	t.Helper()
	b, err := raftboltdb.NewBoltStore(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

var voteTerm, voteCandidate = []byte("LastVoteTerm"), []byte("LastVoteCand")

func TestTornVoteIsNoVote(t *testing.T) {
	bolt := boltStore(t, filepath.Join(t.TempDir(), "stable.db"))
	s := cluster.NewStableStore(bolt)
	vote := func(term uint64, candidate string) error {
		return errors.Join(s.SetUint64(voteTerm, term), s.Set(voteCandidate, []byte(candidate)))
	}
	if _, err := s.GetUint64(voteTerm); err == nil || err.Error() != "not found" { // raft compares the text
		t.Errorf("before any vote: %v", err)
	}
	if err := vote(1, "first"); err != nil {
		t.Fatal(err)
	}
	// The crash comes after the term.
	if err := s.SetUint64(voteTerm, 2); err != nil {
		t.Fatal(err)
	}
	reopened := cluster.NewStableStore(bolt)
	term, err := reopened.GetUint64(voteTerm)
	if term != 2 || err != nil {
		t.Errorf("term %d, %v", term, err)
	}
	if candidate, err := reopened.Get(voteCandidate); len(candidate) != 0 || err == nil || err.Error() != "not found" {
		t.Errorf("in term 2 the vote is %q, %v", candidate, err)
	}
	if err := vote(3, "second"); err != nil {
		t.Fatal(err)
	}
	if candidate, err := reopened.Get(voteCandidate); string(candidate) != "second" || err != nil {
		t.Errorf("in term 3 the vote is %q, %v", candidate, err)
	}
}

func TestStableStore(t *testing.T) {
	bolt := boltStore(t, filepath.Join(t.TempDir(), "stable.db"))
	s := cluster.NewStableStore(bolt)
	if err := errors.Join(s.Set([]byte("k"), []byte("v")), s.SetUint64([]byte("n"), math.MaxUint64)); err != nil {
		t.Fatal(err)
	}
	if v, err := s.Get([]byte("k")); string(v) != "v" || err != nil {
		t.Errorf("got %q, %v", v, err)
	}
	if v, err := s.GetUint64([]byte("n")); v != math.MaxUint64 || err != nil {
		t.Errorf("got %d, %v", v, err)
	}
	// A value under another's name is found.
	raw, err := bolt.Get([]byte("n"))
	if err != nil {
		t.Fatal(err)
	}
	if err := bolt.Set([]byte("k"), raw); err != nil {
		t.Fatal(err)
	}
	if v, err := s.Get([]byte("k")); err == nil {
		t.Errorf("got %q", v)
	}
}

// Damage is done to a closed node's directory; opening it names what is wrong.
func TestDamage(t *testing.T) {
	t.Parallel()
	whole := initialised(t)
	cfg := config(whole)
	cfg.Adjust(func(c *raft.Config) { quick(c); c.TrailingLogs = 3 })
	n := open(t, cfg)
	propose(t, n, createTenant("acme"))
	for i := range 10 {
		propose(t, n, createTenant(fmt.Sprint("t", i)))
	}
	if err := n.Snapshot(patience(t)); err != nil {
		t.Fatal(err)
	}
	propose(t, n, createTenant("globex"))
	propose(t, n, createTenant("initech"))
	shut(t, n)

	overwrite := func(path string, at int64, with []byte) error {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, err = f.WriteAt(with, at)
		return errors.Join(err, f.Close())
	}
	junk := bytes.Repeat([]byte{0xa5}, 4096)
	inBolt := func(path, bucket string, change func(b *bbolt.Bucket) error) error {
		db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: time.Second})
		if err != nil {
			return err
		}
		return errors.Join(db.Update(func(tx *bbolt.Tx) error { return change(tx.Bucket([]byte(bucket))) }), db.Close())
	}
	flip := func(k, v []byte, b *bbolt.Bucket) error {
		v = bytes.Clone(v)
		v[len(v)-1] ^= 1
		return b.Put(bytes.Clone(k), v)
	}
	newest := func(dir string) string {
		there, err := filepath.Glob(filepath.Join(dir, "raft/snapshots/*"))
		if err != nil || len(there) != 1 {
			panic(fmt.Sprint(there, err))
		}
		return there[0]
	}
	for name, damage := range map[string]func(dir string) error{
		"log is gone":      func(dir string) error { return os.Remove(filepath.Join(dir, "raft/log.db")) },
		"log is empty":     func(dir string) error { return os.Truncate(filepath.Join(dir, "raft/log.db"), 0) },
		"log is cut":       func(dir string) error { return os.Truncate(filepath.Join(dir, "raft/log.db"), 2*4096) },
		"log is cut short": func(dir string) error { return os.Truncate(filepath.Join(dir, "raft/log.db"), 100) },
		"log is no log":    func(dir string) error { return overwrite(filepath.Join(dir, "raft/log.db"), 0, append(junk, junk...)) },
		"log has bad pages": func(dir string) error {
			path := filepath.Join(dir, "raft/log.db")
			info, err := os.Stat(path)
			if err != nil {
				return err
			}
			for at := int64(2 * 4096); at < info.Size(); at += 4096 {
				if err := overwrite(path, at, junk); err != nil {
					return err
				}
			}
			return nil
		},
		"an entry has another bit": func(dir string) error {
			return inBolt(filepath.Join(dir, "raft/log.db"), "entries", func(b *bbolt.Bucket) error {
				k, v := b.Cursor().Last()
				return flip(k, v, b)
			})
		},
		"an entry is missing": func(dir string) error {
			return inBolt(filepath.Join(dir, "raft/log.db"), "entries", func(b *bbolt.Bucket) error {
				c := b.Cursor()
				c.Last()
				k, _ := c.Prev()
				return b.Delete(k)
			})
		},
		"an entry stands for another": func(dir string) error {
			return inBolt(filepath.Join(dir, "raft/log.db"), "entries", func(b *bbolt.Bucket) error {
				c := b.Cursor()
				last, _ := c.Last()
				_, v := c.Prev()
				return b.Put(bytes.Clone(last), bytes.Clone(v))
			})
		},
		"stable store is gone":  func(dir string) error { return os.Remove(filepath.Join(dir, "raft/stable.db")) },
		"stable store is empty": func(dir string) error { return os.Truncate(filepath.Join(dir, "raft/stable.db"), 0) },
		"stable store is no one": func(dir string) error {
			return overwrite(filepath.Join(dir, "raft/stable.db"), 0, append(junk, junk...))
		},
		"the term has another bit": func(dir string) error {
			return inBolt(filepath.Join(dir, "raft/stable.db"), "conf", func(b *bbolt.Bucket) error {
				return flip([]byte("CurrentTerm"), b.Get([]byte("CurrentTerm")), b)
			})
		},
		"the vote has another bit": func(dir string) error {
			return inBolt(filepath.Join(dir, "raft/stable.db"), "conf", func(b *bbolt.Bucket) error {
				return flip([]byte("Vote"), b.Get([]byte("Vote")), b)
			})
		},
		"the term is older than the log": func(dir string) error {
			b, err := raftboltdb.NewBoltStore(filepath.Join(dir, "raft/stable.db"))
			if err != nil {
				return err
			}
			s := cluster.NewStableStore(b)
			return errors.Join(s.SetUint64(voteTerm, 1), s.SetUint64([]byte("CurrentTerm"), 1), b.Close())
		},
		"the vote is of a term to come": func(dir string) error {
			b, err := raftboltdb.NewBoltStore(filepath.Join(dir, "raft/stable.db"))
			if err != nil {
				return err
			}
			s := cluster.NewStableStore(b)
			term, err := s.GetUint64([]byte("CurrentTerm"))
			return errors.Join(err, s.SetUint64(voteTerm, term+1), b.Close())
		},
		"snapshot has another byte":  func(dir string) error { return overwrite(filepath.Join(newest(dir), "state.bin"), 100, []byte{0}) },
		"snapshot is cut":            func(dir string) error { return os.Truncate(filepath.Join(newest(dir), "state.bin"), 100) },
		"snapshot is gone":           func(dir string) error { return os.Remove(filepath.Join(newest(dir), "state.bin")) },
		"snapshot's meta is damaged": func(dir string) error { return overwrite(filepath.Join(newest(dir), "meta.json"), 0, []byte("x")) },
		"snapshot's meta is gone":    func(dir string) error { return os.Remove(filepath.Join(newest(dir), "meta.json")) },
		"snapshots are gone":         func(dir string) error { return os.RemoveAll(filepath.Join(dir, "raft/snapshots")) },
		"node.json is gone":          func(dir string) error { return os.Remove(filepath.Join(dir, "raft/node.json")) },
		"node.json is damaged":       func(dir string) error { return os.Truncate(filepath.Join(dir, "raft/node.json"), 5) },
		"node.json is of another cluster": func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "raft/node.json"), fmt.Appendf(nil, `{"format":1,"cluster_id":"%x","node_id":"%x"}`, id("other"), id("node")), 0o600)
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := copied(t, whole)
			if err := damage(dir); err != nil {
				t.Fatal(err)
			}
			if n, err := cluster.Open(config(dir)); !errors.Is(err, cluster.ErrDamaged) {
				t.Errorf("got error %v, want %v", err, cluster.ErrDamaged)
				if err == nil {
					n.Close(patience(t))
				}
			} else {
				t.Log(err)
			}
		})
	}
}

func TestSnapshotTakesThePlaceOfTheLog(t *testing.T) {
	t.Parallel()
	dir := initialised(t)
	cfg := config(dir)
	cfg.Adjust(func(c *raft.Config) { quick(c); c.TrailingLogs = 2 })
	n := open(t, cfg)
	for i := range 20 {
		propose(t, n, createTenant(fmt.Sprint("t", i)))
	}
	if err := n.Snapshot(patience(t)); err != nil {
		t.Fatal(err)
	}
	propose(t, n, createTenant("between")) // raft names a snapshot by its index and the millisecond
	if err := n.Snapshot(patience(t)); err != nil {
		t.Fatal(err)
	}
	propose(t, n, createTenant("later"))
	hash, at := n.State().Hash(), n.State().Index()
	shut(t, n)
	// A crash while a snapshot was written leaves this; it is cleared away.
	tmp := filepath.Join(dir, "raft/snapshots/9-99-9.tmp")
	if err := os.Mkdir(tmp, 0o700); err != nil {
		t.Fatal(err)
	}

	n = open(t, config(dir))
	if _, ok := n.State().TenantByName("t19"); !ok {
		t.Error("the snapshot is not what the node starts from")
	}
	if err := n.WaitFor(patience(t), at); err != nil {
		t.Fatal(err)
	}
	if _, ok := n.State().TenantByName("later"); !ok {
		t.Error("what followed the snapshot is gone")
	}
	if n.State().Index() == at && n.State().Hash() != hash {
		t.Error("the same index has another state")
	}
	if _, err := os.Stat(tmp); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the unfinished snapshot is still there: %v", err)
	}
}

// Raft would start from an older snapshot in silence.
func TestNewestSnapshotIsNotSkipped(t *testing.T) {
	t.Parallel()
	whole := initialised(t)
	n := open(t, config(whole)) // all of the log is kept
	for i := range 2 {
		propose(t, n, createTenant(fmt.Sprint("t", i)))
		if err := n.Snapshot(patience(t)); err != nil {
			t.Fatal(err)
		}
	}
	shut(t, n)
	there, err := os.ReadDir(filepath.Join(whole, "raft/snapshots"))
	if err != nil || len(there) != 2 {
		t.Fatalf("got %v, %v", there, err)
	}
	for _, file := range []string{"meta.json", "state.bin"} {
		dir := copied(t, whole)
		if err := os.Truncate(filepath.Join(dir, "raft/snapshots", there[1].Name(), file), 5); err != nil {
			t.Fatal(err)
		}
		if n, err := cluster.Open(config(dir)); !errors.Is(err, cluster.ErrDamaged) {
			t.Errorf("%s is damaged: got error %v", file, err)
			if err == nil {
				n.Close(patience(t))
			}
		}
	}
}

// Ticks come for ever, and the disk must not fill with them.
func TestTicksDoNotGrowTheDisk(t *testing.T) {
	t.Parallel()
	dir := initialised(t)
	s, err := cluster.NewLogStore(filepath.Join(dir, "raft/log.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	const threshold, trailing = 8192, 4096 // those of the package
	data := string(make([]byte, 100))      // a tick has some 90 bytes
	size := func() int64 {
		info, err := os.Stat(filepath.Join(dir, "raft/log.db"))
		if err != nil {
			t.Fatal(err)
		}
		return info.Size()
	}
	last := uint64(2)
	var sizes []int64
	for range 4 {
		for range threshold / 64 { // in batches, since syncing each takes its time
			var logs []*raft.Log
			for range 64 {
				last++
				logs = append(logs, entry(last, 1, data))
			}
			if err := s.StoreLogs(logs); err != nil {
				t.Fatal(err)
			}
		}
		first, _ := s.FirstIndex()
		if err := s.DeleteRange(first, last-trailing); err != nil {
			t.Fatal(err)
		}
		sizes = append(sizes, size())
	}
	t.Logf("bytes after each snapshot: %v", sizes)
	if grown := sizes[len(sizes)-1]; grown > 8<<20 {
		t.Errorf("the log's file has %d bytes", grown)
	}
}

// An entry that is read is the one that was written, under its own index.
func FuzzEntry(f *testing.F) {
	f.Add(uint64(1), cluster.EncodeEntry(entry(1, 2, "data")))
	f.Add(uint64(1), cluster.EncodeEntry(&raft.Log{Index: 1, Term: 1, Type: raft.LogNoop, AppendedAt: time.Unix(0, 0)}))
	f.Fuzz(func(t *testing.T, index uint64, b []byte) {
		var log raft.Log
		if err := cluster.DecodeEntry(index, b, &log); err != nil {
			return
		}
		if log.Index != index || !bytes.Equal(cluster.EncodeEntry(&log), b) {
			t.Errorf("%x at %d reads as %+v, which is written otherwise", b, index, log)
		}
	})
}

// What a leader has replaced is remembered: its older entries may take the place of one that this node has answered for.
func TestLogStoreRemembersWhatWasReplaced(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "log.db")
	s, err := cluster.NewLogStore(path)
	if err != nil {
		t.Fatal(err)
	}
	entry := func(term, index uint64) *raft.Log { return &raft.Log{Term: term, Index: index, Type: raft.LogNoop} }
	check := func(want cluster.Mark) {
		t.Helper()
		if got, err := cluster.Replaced(s); err != nil || got != want {
			t.Errorf("replaced: %v, %v, want %v", got, err, want)
		}
	}
	if err := s.StoreLogs([]*raft.Log{entry(1, 8), entry(2, 9), entry(3, 10)}); err != nil {
		t.Fatal(err)
	}
	check(cluster.Mark{})
	if err := s.DeleteRange(10, 10); err != nil {
		t.Fatal(err)
	}
	if err := s.StoreLogs([]*raft.Log{entry(2, 10), entry(2, 11)}); err != nil {
		t.Fatal(err)
	}
	check(cluster.Mark{LastTerm: 3, LastIndex: 10})
	// One that is lower changes nothing.
	if err := s.DeleteRange(11, 11); err != nil {
		t.Fatal(err)
	}
	if err := s.StoreLogs([]*raft.Log{entry(4, 11)}); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err = cluster.NewLogStore(path); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	check(cluster.Mark{LastTerm: 3, LastIndex: 10})
}
