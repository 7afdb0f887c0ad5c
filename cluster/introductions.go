package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/kekd/kekd/cluster/peer"
	"github.com/kekd/kekd/cluster/peerpb"
	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/state"
)

// introduction is a member as another member told of it.
type introduction struct {
	ID      hierarchy.NodeID `json:"id"`
	Name    string           `json:"name"`
	Address string           `json:"address"`
	Voter   bool             `json:"voter"`
}

// introductions are the members that this node was told of, for as long as its own state knows less: when it has
// just joined, and when it was away while others came. Without them it would refuse a leader that is newer
// than its state, and so never hear from it what it lacks. They are taken only from nodes that
// this one knows as voters.
type introductions struct {
	Index   uint64         `json:"index"` // the log index of the state that they are from
	Members []introduction `json:"members"`
	// The epoch of that state, as of a [peer.Epoch].
	Epoch     uint64 `json:"epoch,omitempty"`
	Statement []byte `json:"epoch_statement,omitempty"`
}

func (is introductions) in(e peer.Epoch) introductions {
	if is.Epoch = e.Number; is.Epoch > 0 {
		is.Statement = e.Statement[:]
	}
	return is
}

func epochOf(s *state.State) peer.Epoch {
	return peer.Epoch{Number: s.Epoch(), Statement: s.EpochStatement()}
}

func introductionsOf(index uint64, members []*peerpb.Member) introductions {
	is := introductions{Index: index}
	for _, m := range members {
		id, err := hierarchy.IDFromBytes(m.GetNodeId())
		if err != nil {
			continue
		}
		is.Members = append(is.Members, introduction{hierarchy.NodeID{ID: id}, m.GetName(), m.GetAddress(), m.GetVoter()})
	}
	return is
}

func (is introductions) find(id hierarchy.NodeID) (introduction, bool) {
	for _, m := range is.Members {
		if m.ID == id {
			return m, true
		}
	}
	return introduction{}, false
}

// introducedFile is written by [Join], and again when the members that this node knows of change: a node that starts
// has no state until a leader tells what is committed, and has to know whom to listen to before that.
const introducedFile = "introduced.json"

func readIntroductions(dir string) (is introductions, err error) {
	b, err := os.ReadFile(filepath.Join(dir, introducedFile))
	if errors.Is(err, fs.ErrNotExist) {
		return is, nil // a cluster's first node
	}
	if err != nil {
		return is, err
	}
	if err := json.Unmarshal(b, &is); err != nil {
		return is, damaged(dir, introducedFile, err)
	}
	return is, nil
}

// writeIntroductions is durable when it returns, and leaves the old ones or the new ones, whole.
func writeIntroductions(dir string, is introductions) error {
	b, err := json.Marshal(is)
	if err != nil {
		return err
	}
	return replaceFile(filepath.Join(dir, introducedFile), append(b, '\n'))
}

// remember keeps on disk who the members are.
func (n *Node) remember(ctx context.Context) {
	dir := filepath.Join(n.cfg.Dir, raftDir)
	last := n.directory.introduced()
	for {
		change := n.Changed()
		if s := n.State(); s.Index() > last.Index {
			is := introductions{Index: s.Index()}.in(epochOf(s))
			votes, _ := n.votes()
			for m := range s.Nodes() {
				is.Members = append(is.Members, introduction{m.ID, m.Name, m.Address, votes[m.ID]})
			}
			if !slices.Equal(is.Members, last.Members) {
				if err := writeIntroductions(dir, is); err != nil {
					n.cfg.Logger.Warn("who the members are could not be kept on disk; after a restart this node may have to ask", "error", err)
				} else {
					last = is
				}
			}
		}
		select {
		case <-change:
		case <-time.After(rememberEvery): // raft's configuration changes beside the state
		case <-ctx.Done():
			return
		}
	}
}

const rememberEvery = 5 * time.Second

// directory is who is who, as package peer asks for it.
type directory struct {
	n *Node

	mu    sync.Mutex
	told  introductions
	asked time.Time // when the others were last asked
}

// askEvery bounds how often the others are asked because of somebody who is not known.
const askEvery = 500 * time.Millisecond

func (d *directory) introduced() introductions {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.told
}

// Epoch is the state's, or a later one in which this node has joined and whose state it does not have yet.
func (d *directory) Epoch() peer.Epoch {
	s, told := d.n.State(), d.introduced()
	if told.Epoch > s.Epoch() {
		e := peer.Epoch{Number: told.Epoch}
		copy(e.Statement[:], told.Statement)
		return e
	}
	return epochOf(s)
}

// Member looks into the state, and into what this node was told where that is later.
func (d *directory) Member(id hierarchy.NodeID) (peer.Member, bool) {
	s, told := d.n.State(), d.introduced()
	if m, ok := s.Node(id); ok {
		return peer.Member{ID: id, Name: m.Name, Address: m.Address}, true
	}
	if m, ok := told.find(id); ok && told.Index > s.Index() {
		return peer.Member{ID: id, Name: m.Name, Address: m.Address}, true
	}
	if _, removed := s.Removed(id); !removed {
		d.ask()
	}
	return peer.Member{}, false
}

// Voter looks into raft's configuration, which is ahead of the state: a voter counts from the moment on at
// which this node has it in its log.
func (d *directory) Voter(id hierarchy.NodeID) bool {
	if configured, known := d.n.votes(); known && configured[id] {
		return true
	}
	told := d.introduced()
	if m, ok := told.find(id); ok && m.Voter && told.Index > d.n.State().Index() {
		return true
	}
	d.ask()
	return false
}

// ask has the voters that this node knows tell who is a member, in the background: who was refused comes again.
func (d *directory) ask() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.n.calls == nil || time.Since(d.asked) < askEvery {
		return
	}
	d.asked = time.Now()
	go d.learn()
}

func (d *directory) learn() {
	for _, id := range d.others() {
		if is, err := d.hear(id); err == nil {
			is = is.in(d.Epoch()) // members of another are not heard
			d.mu.Lock()
			if is.Index > d.told.Index {
				d.told = is
			}
			d.mu.Unlock()
		}
	}
}

// others are the voters that this node knows of.
func (d *directory) others() (ids []hierarchy.NodeID) {
	add := func(id hierarchy.NodeID) {
		if id != d.n.id.Node && !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	configured, _ := d.n.votes()
	for id, votes := range configured {
		if votes {
			add(id)
		}
	}
	for _, m := range d.introduced().Members {
		if m.Voter {
			add(m.ID)
		}
	}
	return ids
}

func (d *directory) hear(from hierarchy.NodeID) (introductions, error) {
	ctx, cancel := context.WithTimeout(context.Background(), reachTimeout)
	defer cancel()
	client, err := d.n.calls.Peer(ctx, from)
	if err != nil {
		return introductions{}, err
	}
	m, err := client.Members(ctx, &peerpb.MembersRequest{})
	if err != nil {
		return introductions{}, err
	}
	return introductionsOf(m.GetIndex(), m.GetMembers()), nil
}

// votes is raft's configuration: who is in it, and whether he votes. It is not known before raft runs.
func (n *Node) votes() (map[hierarchy.NodeID]bool, bool) {
	r := n.started.Load()
	if r == nil {
		return nil, false
	}
	future := r.GetConfiguration()
	if future.Error() != nil {
		return nil, false
	}
	votes := map[hierarchy.NodeID]bool{}
	for _, server := range future.Configuration().Servers {
		if id, err := hierarchy.ParseID(string(server.ID)); err == nil {
			votes[hierarchy.NodeID{ID: id}] = server.Suffrage == raft.Voter
		}
	}
	return votes, true
}
