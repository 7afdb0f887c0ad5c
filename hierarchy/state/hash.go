package state

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/binary"
)

// The hash of a state is a hash of the multiset of its records, kept up to date record by
// record, so that comparing states four times a second costs the same with 10,000 tenants as
// with one.
//
// It is LtHash (Bellare and Micciancio 1997; Lewi et al. 2019): each record is expanded to 1024
// lanes of 16 bits, which are added lane by lane. Operators sign this hash, so that a plain sum
// of 256-bit hashes would not do: for such a sum, collisions are found in about 2^32 steps
// (Wagner 2002).
const lanes = 1024

type lattice [lanes]uint16

// Kinds of records in the hash. A byte of its own for each keeps a record of one kind from being
// taken for one of another.
const (
	hashRegion     byte = 'R'
	hashNode       byte = 'N'
	hashTenant     byte = 'T'
	hashKey        byte = 'K' // without its versions
	hashVersion    byte = 'V'
	hashService    byte = 'S'
	hashRule       byte = 'P'
	hashAnchor     byte = 'A'
	hashOutcome    byte = 'O'
	hashUses       byte = 'U'
	hashRemoved    byte = 'D'
	hashInvitation byte = 'I'
	hashTombstone  byte = 'X'
	hashFence      byte = 'F'
)

// expand turns a record into lanes: AES-256 in counter mode under the record's SHA-256, which
// takes a fifth of the time of SHAKE128.
func expand(record []byte) (l lattice) {
	seed := sha256.Sum256(record)
	block, err := aes.NewCipher(seed[:])
	if err != nil {
		panic(err) // a key of 32 bytes is always one of AES
	}
	var stream [2 * lanes]byte
	var iv [aes.BlockSize]byte // each seed is used once
	cipher.NewCTR(block, iv[:]).XORKeyStream(stream[:], stream[:])
	for i := range l {
		l[i] = binary.LittleEndian.Uint16(stream[2*i:])
	}
	return l
}

func (l *lattice) add(record []byte) {
	e := expand(record)
	for i := range l {
		l[i] += e[i]
	}
}

func (l *lattice) remove(record []byte) {
	e := expand(record)
	for i := range l {
		l[i] -= e[i]
	}
}

// Hash is SHA-256 over everything that the state consists of, its index included, but for the words
// of refusals. Two nodes whose states have the same index and another hash have diverged.
func (s *State) Hash() [32]byte {
	b := make([]byte, 0, 128+2*lanes)
	b = append(b, "kekd state v1\x00"...)
	b = append(b, s.cluster.ID[:]...)
	b = binary.BigEndian.AppendUint64(b, s.index)
	b = binary.BigEndian.AppendUint64(b, uint64(s.stamp))
	b = binary.BigEndian.AppendUint64(b, s.epoch)
	if s.epoch > 0 {
		b = append(b, s.raisedBy[:]...)
	}
	b = binary.BigEndian.AppendUint32(b, s.level)
	for _, lane := range s.sum {
		b = binary.LittleEndian.AppendUint16(b, lane)
	}
	return sha256.Sum256(b)
}
