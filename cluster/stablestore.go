package cluster

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
)

// The names that raft writes its vote under, and the one that it is kept under here.
const (
	keyLastVoteTerm = "LastVoteTerm"
	keyLastVoteCand = "LastVoteCand"
	keyVote         = "Vote"
	keyCurrentTerm  = "CurrentTerm"
)

// stableStore keeps raft's term and vote in raft-boltdb, each value with a checksum.
//
// Raft writes a vote in two steps, term and candidate. A crash in between would leave the new term
// with the old candidate, who would then be granted a vote without a look at its log
// (hashicorp/raft issue 661). Here both are one value: setting the term forgets the candidate in the
// same transaction, and a vote that was torn so is no vote.
type stableStore struct {
	kv interface {
		Set(key, value []byte) error
		Get(key []byte) ([]byte, error)
	}
}

func (s *stableStore) Set(key, value []byte) error {
	if string(key) != keyLastVoteCand {
		return s.put(string(key), value)
	}
	term, _, err := s.vote()
	if err != nil {
		return err // raft sets the term first
	}
	return s.put(keyVote, append(binary.BigEndian.AppendUint64(nil, term), value...))
}

func (s *stableStore) SetUint64(key []byte, value uint64) error {
	name := string(key)
	if name == keyLastVoteTerm {
		name = keyVote
	}
	return s.put(name, binary.BigEndian.AppendUint64(nil, value))
}

func (s *stableStore) Get(key []byte) ([]byte, error) {
	if string(key) != keyLastVoteCand {
		return s.get(string(key))
	}
	_, candidate, err := s.vote()
	if err == nil && len(candidate) == 0 {
		err = raftboltdb.ErrKeyNotFound
	}
	return candidate, err
}

func (s *stableStore) GetUint64(key []byte) (uint64, error) {
	if string(key) == keyLastVoteTerm {
		term, _, err := s.vote()
		return term, err
	}
	v, err := s.get(string(key))
	if err != nil {
		return 0, err
	}
	if len(v) != 8 {
		return 0, fmt.Errorf("%w: %s has %d bytes, not 8", errDamaged, key, len(v))
	}
	return binary.BigEndian.Uint64(v), nil
}

func (s *stableStore) vote() (term uint64, candidate []byte, err error) {
	v, err := s.get(keyVote)
	if err != nil {
		return 0, nil, err
	}
	if len(v) < 8 {
		return 0, nil, fmt.Errorf("%w: the vote has %d bytes", errDamaged, len(v))
	}
	return binary.BigEndian.Uint64(v), v[8:], nil
}

// verify reads everything that raft will ask for, and returns the current term.
func (s *stableStore) verify() (term uint64, err error) {
	if term, err = s.GetUint64([]byte(keyCurrentTerm)); err != nil {
		return 0, fmt.Errorf("the current term: %w", err)
	}
	voted, _, err := s.vote()
	if err != nil && !errors.Is(err, raftboltdb.ErrKeyNotFound) {
		return 0, err
	}
	if voted > term {
		return 0, fmt.Errorf("%w: the vote is of term %d, the current term is %d", errDamaged, voted, term)
	}
	return term, nil
}

func (s *stableStore) put(name string, value []byte) error {
	return s.kv.Set([]byte(name), append(checksum(name, value), value...))
}

func (s *stableStore) get(name string) ([]byte, error) {
	v, err := s.kv.Get([]byte(name))
	if err != nil {
		return nil, err
	}
	if len(v) < crc32.Size || string(v[:crc32.Size]) != string(checksum(name, v[crc32.Size:])) {
		return nil, fmt.Errorf("%w: the checksum of %s does not fit", errDamaged, name)
	}
	return v[crc32.Size:], nil
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checksum covers the name too, so that no value is taken for another's.
func checksum(name string, value []byte) []byte {
	sum := crc32.Update(crc32.Checksum([]byte(name), castagnoli), castagnoli, value)
	return binary.BigEndian.AppendUint32(nil, sum)
}
