package cluster

import (
	"errors"

	"github.com/hashicorp/raft"
)

// preVoting is what a node needs of a transport.
type preVoting interface {
	raft.Transport
	raft.WithPreVote
}

// quiet is a transport on which a leader says nothing while its disk does not answer. Raft's heartbeats do not
// need the disk: the others would keep a leader that commits nothing until their leases have run out. So they elect
// another. Votes and answers go through: they were on the disk before raft gives them.
type quiet struct {
	preVoting
	disk *failure
}

func (q quiet) AppendEntries(id raft.ServerID, target raft.ServerAddress, req *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	if err := q.disk.await(); err != nil {
		return err
	}
	return q.preVoting.AppendEntries(id, target, req, resp)
}

func (q quiet) AppendEntriesPipeline(id raft.ServerID, target raft.ServerAddress) (raft.AppendPipeline, error) {
	p, err := q.preVoting.AppendEntriesPipeline(id, target)
	if err != nil {
		return nil, err
	}
	return quietPipeline{p, q.disk}, nil
}

// Close is for raft, which closes a transport that can be closed.
func (q quiet) Close() error {
	if c, ok := q.preVoting.(raft.WithClose); ok {
		return c.Close()
	}
	return nil
}

// quietPipeline ends instead of waiting: raft then sends what follows one by one, and waits there.
type quietPipeline struct {
	raft.AppendPipeline
	disk *failure
}

var errSlowDisk = errors.New("the disk of this node does not answer")

func (p quietPipeline) AppendEntries(req *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	if p.disk.isSlow() {
		return nil, errSlowDisk
	}
	return p.AppendPipeline.AppendEntries(req, resp)
}

// isSlow tells whether an operation of a store has not answered for a while.
func (f *failure) isSlow() bool { return f.slow.Load() > 0 }

// await returns when no operation of a store is slow, or with the reason why the node has failed.
func (f *failure) await() error {
	for {
		answered := f.answered.next()
		if !f.isSlow() {
			return f.fault()
		}
		select {
		case <-answered:
		case <-f.done:
			return f.err
		}
	}
}
