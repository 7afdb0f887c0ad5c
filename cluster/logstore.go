package cluster

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"go.etcd.io/bbolt"
)

// logStore keeps raft's log in bbolt. raft-boltdb would do but for two things, for which it keeps its
// database to itself:
//
//   - When entries conflict with the leader's, raft deletes the suffix and then stores what takes its
//     place. Between the two the log ends before entries that this node has acknowledged, and a crash
//     there leaves a node whose disk is behind what it has said. Here the deletion waits for the
//     entries and both are one transaction. Until then it is seen by raft only; if the process ends
//     first, the old suffix is still there, and the leader will find the conflict again.
//   - bbolt has no checksums over data. Each entry has one here, over its index too.
type logStore struct {
	db *bbolt.DB

	mu  sync.Mutex
	cut uint64 // entries from here to the end wait to be deleted; 0: none
}

var (
	entries = []byte("entries")
	// The last entry by term, then index, of those that were replaced: what replaces an uncommitted entry may be of
	// a lower term until the leader's own entry is there as well, and the node has answered for the higher one.
	replacedEntries = []byte("replaced")
	highest         = []byte("highest")
)

func openLogStore(path string) (*logStore, error) {
	db, err := bbolt.Open(path, 0o600, boltOptions())
	if err != nil {
		return nil, err
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		for _, name := range [][]byte{entries, replacedEntries} {
			if _, err := tx.CreateBucketIfNotExists(name); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		db.Close()
		return nil, err
	}
	return &logStore{db: db}, nil
}

func (s *logStore) Close() error { return s.db.Close() }

func (s *logStore) FirstIndex() (index uint64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	err = s.db.View(func(tx *bbolt.Tx) error {
		first, _ := tx.Bucket(entries).Cursor().First()
		index, err = indexOf(first)
		return err
	})
	if s.cut != 0 && index >= s.cut {
		index = 0
	}
	return index, err
}

func (s *logStore) LastIndex() (index uint64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	err = s.db.View(func(tx *bbolt.Tx) error {
		c := tx.Bucket(entries).Cursor()
		last, _ := c.Last()
		if s.cut != 0 {
			if at, _ := c.Seek(key(s.cut)); at != nil {
				last, _ = c.Prev()
			}
		}
		index, err = indexOf(last)
		return err
	})
	return index, err
}

func (s *logStore) GetLog(index uint64, log *raft.Log) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cut != 0 && index >= s.cut {
		return raft.ErrLogNotFound
	}
	return s.db.View(func(tx *bbolt.Tx) error {
		v := tx.Bucket(entries).Get(key(index))
		if v == nil {
			return raft.ErrLogNotFound
		}
		return decodeEntry(index, v, log)
	})
}

func (s *logStore) StoreLog(log *raft.Log) error { return s.StoreLogs([]*raft.Log{log}) }

func (s *logStore) StoreLogs(logs []*raft.Log) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.db.Update(func(tx *bbolt.Tx) error {
		b := tx.Bucket(entries)
		b.FillPercent = 0.9 // entries are appended: half-empty pages would stay so
		if s.cut != 0 {
			if err := noteReplaced(tx); err != nil {
				return err
			}
			if err := deleteEntries(b, s.cut, ^uint64(0)); err != nil {
				return err
			}
		}
		for _, log := range logs {
			if err := b.Put(key(log.Index), encodeEntry(log)); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		s.cut = 0
	}
	return err
}

// DeleteRange deletes at once what was compacted, and remembers a suffix until [logStore.StoreLogs].
func (s *logStore) DeleteRange(from, to uint64) error {
	last, err := s.LastIndex()
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if from > to || from > last {
		return nil
	}
	if to >= last {
		s.cut = max(from, 1)
		return nil
	}
	return s.db.Update(func(tx *bbolt.Tx) error { return deleteEntries(tx.Bucket(entries), from, to) })
}

// noteReplaced keeps the last entry in mind, before it is replaced.
func noteReplaced(tx *bbolt.Tx) error {
	had, err := replacedIn(tx)
	if err != nil {
		return err
	}
	k, v := tx.Bucket(entries).Cursor().Last()
	if k == nil {
		return nil
	}
	var last raft.Log
	index, err := indexOf(k)
	if err == nil {
		err = decodeEntry(index, v, &last)
	}
	if err != nil {
		return err
	}
	now := had.withEntry(last.Term, index)
	if now == had {
		return nil
	}
	b := binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, now.LastTerm), now.LastIndex)
	return tx.Bucket(replacedEntries).Put(highest, append(checksum(string(highest), b), b...))
}

func replacedIn(tx *bbolt.Tx) (m Mark, err error) {
	v := tx.Bucket(replacedEntries).Get(highest)
	if v == nil {
		return m, nil
	}
	if len(v) != crc32.Size+16 || string(v[:crc32.Size]) != string(checksum(string(highest), v[crc32.Size:])) {
		return m, fmt.Errorf("%w: the checksum of the last entry that was replaced does not fit", errDamaged)
	}
	return Mark{LastTerm: binary.BigEndian.Uint64(v[crc32.Size:]), LastIndex: binary.BigEndian.Uint64(v[crc32.Size+8:])}, nil
}

// replaced is the last entry by term, then index, of those that others have taken the place of; zero: none.
func (s *logStore) replaced() (m Mark, err error) {
	err = s.db.View(func(tx *bbolt.Tx) error {
		m, err = replacedIn(tx)
		return err
	})
	return m, err
}

func deleteEntries(b *bbolt.Bucket, from, to uint64) error {
	c := b.Cursor()
	for k, _ := c.Seek(key(from)); k != nil; k, _ = c.Seek(key(from)) {
		index, err := indexOf(k)
		if err != nil || index > to {
			return err
		}
		if err := c.Delete(); err != nil {
			return err
		}
	}
	return nil
}

// walk reads every entry in order.
func (s *logStore) walk(visit func(*raft.Log) error) error {
	return s.db.View(func(tx *bbolt.Tx) error {
		return tx.Bucket(entries).ForEach(func(k, v []byte) error {
			index, err := indexOf(k)
			if err != nil {
				return err
			}
			var log raft.Log
			if err := decodeEntry(index, v, &log); err != nil {
				return err
			}
			return visit(&log)
		})
	})
}

func key(index uint64) []byte { return binary.BigEndian.AppendUint64(nil, index) }

// indexOf reads a key; that of no entry is 0.
func indexOf(k []byte) (uint64, error) {
	if k == nil {
		return 0, nil
	}
	if len(k) != 8 {
		return 0, fmt.Errorf("%w: an entry of the log has a key of %d bytes", errDamaged, len(k))
	}
	return binary.BigEndian.Uint64(k), nil
}

// An entry is a checksum (CRC-32C over the index and what follows), term, type, time of appending in
// Unix nanoseconds, length of the extensions, extensions, data. Numbers are big-endian.
const entryHeader = crc32.Size + 8 + 1 + 8 + 4

func encodeEntry(log *raft.Log) []byte {
	b := make([]byte, crc32.Size, entryHeader+len(log.Extensions)+len(log.Data))
	b = binary.BigEndian.AppendUint64(b, log.Term)
	b = append(b, byte(log.Type))
	b = binary.BigEndian.AppendUint64(b, uint64(log.AppendedAt.UnixNano()))
	b = binary.BigEndian.AppendUint32(b, uint32(len(log.Extensions)))
	b = append(b, log.Extensions...)
	b = append(b, log.Data...)
	copy(b, checksum(string(key(log.Index)), b[crc32.Size:]))
	return b
}

func decodeEntry(index uint64, b []byte, log *raft.Log) error {
	if len(b) < entryHeader || string(b[:crc32.Size]) != string(checksum(string(key(index)), b[crc32.Size:])) {
		return fmt.Errorf("%w: the checksum of entry %d does not fit", errDamaged, index)
	}
	b = b[crc32.Size:]
	*log = raft.Log{
		Index:      index,
		Term:       binary.BigEndian.Uint64(b),
		Type:       raft.LogType(b[8]),
		AppendedAt: time.Unix(0, int64(binary.BigEndian.Uint64(b[9:]))),
	}
	extensions, rest := binary.BigEndian.Uint32(b[17:]), b[21:]
	if uint64(extensions) > uint64(len(rest)) {
		return fmt.Errorf("%w: entry %d is shorter than it says", errDamaged, index)
	}
	// bbolt's memory is gone with the transaction.
	if extensions > 0 {
		log.Extensions = append([]byte(nil), rest[:extensions]...)
	}
	log.Data = append([]byte(nil), rest[extensions:]...)
	return nil
}
