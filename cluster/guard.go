package cluster

import (
	"errors"
	"fmt"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
)

// The guards stand between raft and its stores. An error of a store ends the node before raft sees
// it: raft takes a failed write as one that had no effect, steps down or tries again, and goes on
// with its memory ahead of the disk. After a failed fsync nobody knows what the disk holds. One that does
// not answer ends the node as well.

type guardedLog struct {
	inner raft.LogStore
	fail  *failure
	// marked is called with new entries once they are on disk, and before raft goes on.
	marked func(logs []*raft.Log) error
}

const (
	theLog    = "log store"
	theStable = "stable store"
)

func (g *guardedLog) must(what string, err error) {
	if err != nil {
		g.fail.failForGood(fmt.Errorf("the %s cannot %s: %w", theLog, what, err))
	}
}

func (g *guardedLog) FirstIndex() (uint64, error) {
	defer g.fail.watched(theLog, "tell its first entry")()
	i, err := g.inner.FirstIndex()
	g.must("tell its first entry", err)
	return i, nil
}

func (g *guardedLog) LastIndex() (uint64, error) {
	defer g.fail.watched(theLog, "tell its last entry")()
	i, err := g.inner.LastIndex()
	g.must("tell its last entry", err)
	return i, nil
}

// GetLog lets ErrLogNotFound pass: raft asks for entries that may have been compacted.
func (g *guardedLog) GetLog(index uint64, log *raft.Log) error {
	defer g.fail.watched(theLog, "read an entry")()
	err := g.inner.GetLog(index, log)
	if errors.Is(err, raft.ErrLogNotFound) {
		return raft.ErrLogNotFound
	}
	g.must(fmt.Sprintf("read entry %d", index), err)
	return nil
}

func (g *guardedLog) StoreLog(log *raft.Log) error { return g.StoreLogs([]*raft.Log{log}) }

func (g *guardedLog) StoreLogs(logs []*raft.Log) error {
	end := g.fail.watched(theLog, "write entries")
	g.must("write entries", g.inner.StoreLogs(logs))
	end()
	if err := g.marked(logs); err != nil {
		g.fail.failForGood(err)
	}
	return nil
}

func (g *guardedLog) DeleteRange(from, to uint64) error {
	defer g.fail.watched(theLog, "delete entries")()
	g.must("delete entries", g.inner.DeleteRange(from, to))
	return nil
}

type guardedStable struct {
	inner raft.StableStore
	fail  *failure
	// marked is called with a new term once it is on disk, and before raft goes on.
	marked func(term uint64) error
}

// must lets "not found" pass, which raft knows by its text.
func (g *guardedStable) must(what string, err error) error {
	if errors.Is(err, raftboltdb.ErrKeyNotFound) {
		return raftboltdb.ErrKeyNotFound
	}
	if err != nil {
		g.fail.failForGood(fmt.Errorf("the %s cannot %s: %w", theStable, what, err))
	}
	return nil
}

func (g *guardedStable) Set(key, value []byte) error {
	defer g.fail.watched(theStable, "write "+string(key))()
	return g.must("write "+string(key), g.inner.Set(key, value))
}

func (g *guardedStable) Get(key []byte) ([]byte, error) {
	defer g.fail.watched(theStable, "read "+string(key))()
	v, err := g.inner.Get(key)
	return v, g.must("read "+string(key), err)
}

func (g *guardedStable) SetUint64(key []byte, value uint64) error {
	end := g.fail.watched(theStable, "write "+string(key))
	err := g.must("write "+string(key), g.inner.SetUint64(key, value))
	end()
	if err != nil {
		return err
	}
	if string(key) == keyCurrentTerm {
		if err := g.marked(value); err != nil {
			g.fail.failForGood(err)
		}
	}
	return nil
}

func (g *guardedStable) GetUint64(key []byte) (uint64, error) {
	defer g.fail.watched(theStable, "read "+string(key))()
	v, err := g.inner.GetUint64(key)
	return v, g.must("read "+string(key), err)
}
