package audit

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/x509"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/stats"
)

// Defaults of [Options], and the limits behind them.
const (
	DefaultSegmentSize        = 64 << 20 // bytes
	MinSegmentSize            = 64 << 10
	DefaultCheckpointRecords  = 10_000
	DefaultCheckpointInterval = 5 * time.Second

	// MaxAppend is how many records one Append takes. All stand in one segment, or none.
	MaxAppend = 1024
	// maxPending is how much may wait for the flusher, and so be lost or torn by a crash, in
	// bytes. The largest Append fits.
	maxPending = MaxAppend * MaxLine
	// maxSpare is the largest buffer that is kept for later, in bytes. There are two.
	maxSpare = 2 << 20
	// reserve is what is left free at the end of a segment while no other one is ready, for
	// checkpoints, in bytes.
	reserve = 8 << 10
	// prepareRetry is how long after a failure the next segment is tried again.
	prepareRetry = time.Second
)

// Options say whose journal it is.
type Options struct {
	Cluster hierarchy.ClusterID
	Node    hierarchy.NodeID
	// Signer signs checkpoints: ECDSA P-256. It is called by one goroutine and never while a
	// lock is held. While it fails, records are written on, and [Status] tells.
	Signer crypto.Signer
	// Anchor is a head of this journal that was kept elsewhere; nil: none is. Open refuses a
	// journal that does not fit it.
	Anchor *Checkpoint

	SegmentSize        int64         // bytes; 0: DefaultSegmentSize
	CheckpointRecords  uint64        // a checkpoint at the latest after so many; 0: DefaultCheckpointRecords
	CheckpointInterval time.Duration // and after so long, if there is something new; 0: DefaultCheckpointInterval

	Log *slog.Logger // nil: none

	wrap func(file) file // puts faults under the files, for tests
}

func (o *Options) complete() error {
	switch {
	case o.Cluster.IsZero() || o.Node.IsZero():
		return fmt.Errorf("%w: an audit journal is of a cluster and of a node", hierarchy.ErrInvalidArgument)
	case o.Signer == nil:
		return fmt.Errorf("%w: an audit journal needs a signer", hierarchy.ErrInvalidArgument)
	case o.SegmentSize != 0 && o.SegmentSize < MinSegmentSize:
		return fmt.Errorf("%w: segments of %d bytes: at least %d", hierarchy.ErrInvalidArgument, o.SegmentSize, MinSegmentSize)
	}
	if o.SegmentSize == 0 {
		o.SegmentSize = DefaultSegmentSize
	}
	if o.CheckpointRecords == 0 {
		o.CheckpointRecords = DefaultCheckpointRecords
	}
	if o.CheckpointInterval == 0 {
		o.CheckpointInterval = DefaultCheckpointInterval
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return nil
}

// publicKey of the signer, as it stands in headers.
func (o *Options) publicKey() ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(o.Signer.Public())
	if err != nil {
		return nil, fmt.Errorf("public key of the audit journal: %w", err)
	}
	if _, err := ParsePublicKey(der); err != nil {
		return nil, err
	}
	return der, nil
}

// Journal is one node's audit journal, open for writing. All methods may be called at once.
//
// Three goroutines serve it: the flusher writes and syncs what was appended, the sealer signs
// heads, and the preparer makes the next segment ready before the present one is full.
type Journal struct {
	opts      Options
	dir       *directory
	node      string // text form of opts.Node
	publicKey []byte // DER
	key       *ecdsa.PublicKey
	before    Hash // of the record before the segment that Open found last

	mu      sync.Mutex
	chain   *chain
	head    Position      // of the last record
	cur     *segment      // where the next line goes
	off     int64         // in cur, where it goes
	pending *group        // appended, and not yet taken by the flusher
	spare   []byte        // buffer of a group that was flushed
	durable uint64        // sequence
	writing *group        // what the flusher writes now; nil: nothing
	shared  bool          // many callers had records in it
	changed chan struct{} // closed, and replaced, when a blocked Append should look again
	closing bool
	err     error // the first failure; set once

	next       *segment // ready, without a name
	nextWanted bool     // the preparer has been asked for it
	nextErr    error    // why there is none

	lastData uint64 // sequence of the last record that is no checkpoint
	signed   uint64 // sequence that the last checkpoint signed
	signErr  error
	seals    []*seal // asked for, in order

	follow map[hierarchy.TenantID][]*Follower // never changed, only replaced

	wakeFlusher  chan struct{} // each of capacity 1
	wakeSealer   chan struct{}
	wakePreparer chan struct{}
	checkpoints  chan Checkpoint

	written atomic.Uint64 // bytes, since Open
	syncs   stats.Histogram

	failed       chan struct{} // closed with err
	stopSealer   chan struct{}
	stopFlusher  chan struct{}
	stopPreparer chan struct{}
	sealerDone   chan struct{}
	flusherDone  chan struct{}
	preparerDone chan struct{}
}

// segment is a file of the journal that is written to.
type segment struct {
	f         file
	size      int64 // filled with zeros ahead, bytes
	first     uint64
	published bool // it has its name, and that is durable
}

// Status is what the journal has to say of itself.
type Status struct {
	Sequence uint64 // of the last record
	Durable  uint64 // up to here it is on the disk
	Signed   uint64 // up to here it is signed
	SignErr  error  // why the last attempt to sign failed; nil: it did not
	// SpaceErr says why the next segment cannot be made, while the present one may still have
	// room; nil: all is well.
	SpaceErr error
}

// Status tells how far the journal is.
func (j *Journal) Status() Status {
	j.mu.Lock()
	defer j.mu.Unlock()
	return Status{Sequence: j.chain.seq, Durable: j.durable, Signed: j.signed, SignErr: j.signErr, SpaceErr: j.nextErr}
}

// Written is how many bytes of records were made durable since the journal was opened.
func (j *Journal) Written() uint64 { return j.written.Load() }

// Syncs is how long it took to make records durable, all that one sync took along at a time: writing, and waiting
// for the disk.
func (j *Journal) Syncs() stats.Distribution { return j.syncs.Read() }

// Healthy is nil while records can be appended. Its error wraps [hierarchy.ErrAuditUnavailable].
func (j *Journal) Healthy() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	switch {
	case j.err != nil:
		return j.err
	case j.nextErr != nil && j.off+MaxLine > j.limit():
		return j.noRoom()
	}
	return nil
}

// Failed is closed when the journal has failed for good. [Journal.Healthy] then says why.
func (j *Journal) Failed() <-chan struct{} { return j.failed }

// Checkpoints hands out each checkpoint once it is durable in the journal, to be anchored
// elsewhere. Who is slow gets the latest. It is closed when the journal is.
func (j *Journal) Checkpoints() <-chan Checkpoint { return j.checkpoints }

// fail records the first failure and lets everybody go who waits. Called with mu held.
func (j *Journal) fail(err error) {
	if j.err != nil {
		return
	}
	j.err = fmt.Errorf("%w: %w", hierarchy.ErrAuditUnavailable, err)
	close(j.failed)
	if j.writing != nil {
		j.writing.finish(j.err)
	}
	j.pending.finish(j.err)
	j.wakeAppenders()
	for _, followers := range j.follow {
		for _, f := range followers {
			f.end(j.err)
		}
	}
}

// wakeAppenders is called with mu held.
func (j *Journal) wakeAppenders() {
	close(j.changed)
	j.changed = make(chan struct{})
}

func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// header makes the record that opens a segment. Called with mu held, or before there is
// anybody else.
func (o *Options) header(c *chain, publicKey []byte) *Entry {
	return &Entry{
		Record:   Record{Kind: KindSegment, At: time.Now()},
		Node:     o.Node,
		Sequence: c.seq + 1,
		Prev:     c.hash,
		Segment:  &SegmentHeader{Format: FormatVersion, Cluster: o.Cluster, PublicKey: publicKey, Heads: c.heads},
	}
}

// belongs checks that a segment is of this journal.
func (j *Journal) belongs(e *Entry) error {
	s := e.Segment
	switch {
	case s == nil:
		return fmt.Errorf("its first record is not a segment's header")
	case s.Cluster != j.opts.Cluster:
		return fmt.Errorf("it is of cluster %s, and not of %s", s.Cluster, j.opts.Cluster)
	case e.Node != j.opts.Node:
		return fmt.Errorf("it is of node %s, and not of %s", e.Node, j.opts.Node)
	case !bytes.Equal(s.PublicKey, j.publicKey):
		return fmt.Errorf("it was signed by another identity key")
	}
	return nil
}
