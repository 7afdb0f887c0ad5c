package main

import (
	"bufio"
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// A sealed file is a 4-byte big-endian length, the envelope of its data key, and chunks of
// AES-256-GCM. The nonce of a chunk is its number and whether it is the last, as in STREAM
// (Hoang, Reyhanitabar, Rogaway, Vizár 2015): chunks cannot be reordered, doubled or cut off.
// A data key seals one file, so counting nonces never repeat under it.

const (
	chunkSize   = 64 << 10
	maxEnvelope = 16 << 10
)

type chunks struct {
	aead  cipher.AEAD
	count uint64
}

func newChunks(dataKey []byte) (*chunks, error) {
	block, err := aes.NewCipher(dataKey)
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCM(block)
	return &chunks{aead: aead}, err
}

func (c *chunks) nonce(last bool) []byte {
	n := make([]byte, c.aead.NonceSize())
	binary.BigEndian.PutUint64(n[3:], c.count)
	if last {
		n[11] = 1
	}
	c.count++
	return n
}

// sealStream writes the sealed form of in.
func sealStream(out io.Writer, in io.Reader, envelope, dataKey []byte) error {
	c, err := newChunks(dataKey)
	if err != nil {
		return err
	}
	head := binary.BigEndian.AppendUint32(nil, uint32(len(envelope)))
	if _, err := out.Write(append(head, envelope...)); err != nil {
		return err
	}
	return eachChunk(in, chunkSize, func(chunk []byte, last bool) error {
		_, err := out.Write(c.aead.Seal(nil, c.nonce(last), chunk, nil))
		return err
	})
}

// readEnvelope takes the envelope off the front of a sealed file.
func readEnvelope(in io.Reader) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(in, head[:]); err != nil {
		return nil, fmt.Errorf("not a sealed file: %w", err)
	}
	n := binary.BigEndian.Uint32(head[:])
	if n == 0 || n > maxEnvelope {
		return nil, errors.New("not a sealed file")
	}
	envelope := make([]byte, n)
	_, err := io.ReadFull(in, envelope)
	return envelope, err
}

// openStream writes the plaintext of what follows the envelope.
func openStream(out io.Writer, in io.Reader, dataKey []byte) error {
	c, err := newChunks(dataKey)
	if err != nil {
		return err
	}
	return eachChunk(in, chunkSize+c.aead.Overhead(), func(chunk []byte, last bool) error {
		plain, err := c.aead.Open(nil, c.nonce(last), chunk, nil)
		if err != nil {
			return errors.New("the file was altered, cut off or sealed under another data key")
		}
		_, err = out.Write(plain)
		return err
	})
}

// eachChunk splits a stream and tells which chunk is the last; an empty stream has one chunk.
func eachChunk(in io.Reader, size int, f func(chunk []byte, last bool) error) error {
	r := bufio.NewReaderSize(in, size)
	buf := make([]byte, size)
	for {
		n, err := io.ReadFull(r, buf)
		if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
			return err
		}
		_, peek := r.Peek(1)
		last := peek == io.EOF
		if peek != nil && !last {
			return peek
		}
		if err := f(buf[:n], last); err != nil || last {
			return err
		}
	}
}
