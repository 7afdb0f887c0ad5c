package audit_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/audit"
)

// rig is a journal and whose it is.
type rig struct {
	t    testing.TB
	dir  string
	key  *ecdsa.PrivateKey
	opts audit.Options
	j    *audit.Journal
}

// newRig makes and opens a journal of small segments that signs only when it is told to.
func newRig(t testing.TB, change ...func(*audit.Options)) *rig {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, dir: filepath.Join(t.TempDir(), "audit"), key: key, opts: audit.Options{
		Cluster:            hierarchy.ClusterID{ID: hierarchy.NewID()},
		Node:               hierarchy.NodeID{ID: hierarchy.NewID()},
		Signer:             key,
		SegmentSize:        audit.MinSegmentSize,
		CheckpointRecords:  1 << 40,
		CheckpointInterval: time.Hour,
	}}
	for _, c := range change {
		c(&r.opts)
	}
	if err := audit.Create(r.dir, r.opts); err != nil {
		t.Fatal(err)
	}
	r.open()
	<-r.j.Checkpoints() // the first one signs the genesis
	return r
}

func (r *rig) open() {
	r.t.Helper()
	j, err := audit.Open(r.dir, r.opts)
	if err != nil {
		r.t.Fatal(err)
	}
	r.j = j
	r.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		j.Close(ctx) // a second Close does nothing; what a test expects of the first it checks itself
	})
}

func (r *rig) close() {
	r.t.Helper()
	if err := r.j.Close(r.ctx()); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	r.t.Cleanup(cancel)
	return ctx
}

func (r *rig) write(recs ...audit.Record) audit.Position {
	r.t.Helper()
	p, err := r.j.Write(r.ctx(), recs)
	if err != nil {
		r.t.Fatal(err)
	}
	return p
}

// verify checks the journal's directory with the pinned key.
func (r *rig) verify(anchors ...audit.Checkpoint) *audit.Report {
	r.t.Helper()
	return r.verifyDir(r.dir, anchors...)
}

func (r *rig) verifyDir(dir string, anchors ...audit.Checkpoint) *audit.Report {
	r.t.Helper()
	rep, err := audit.Verify(r.ctx(), os.DirFS(dir), audit.VerifyOptions{PublicKey: &r.key.PublicKey, Node: r.opts.Node, Cluster: r.opts.Cluster, Anchors: anchors})
	if err != nil {
		r.t.Fatal(err)
	}
	return rep
}

func (r *rig) mustVerify(anchors ...audit.Checkpoint) *audit.Report {
	r.t.Helper()
	rep := r.verify(anchors...)
	if !rep.OK() {
		r.t.Fatalf("journal does not verify: %v", rep.Faults)
	}
	return rep
}

// tail collects a tenant's last records.
func (r *rig) tail(ctx context.Context, tenant hierarchy.TenantID, n int) ([]audit.Line, error) {
	var lines []audit.Line
	for l, err := range r.j.Tail(ctx, tenant, n) {
		if err != nil {
			return lines, err
		}
		l.JSON = bytes.Clone(l.JSON)
		lines = append(lines, l)
	}
	return lines, nil
}

// segments are the paths of the journal's segments, in order.
func (r *rig) segments() []string {
	r.t.Helper()
	paths, err := filepath.Glob(filepath.Join(r.dir, "*.jsonl"))
	if err != nil {
		r.t.Fatal(err)
	}
	return paths
}

// lines of all segments, in order.
func (r *rig) lines() []string {
	r.t.Helper()
	var lines []string
	for _, path := range r.segments() {
		lines = append(lines, linesOf(r.t, path)...)
	}
	return lines
}

func linesOf(t testing.TB, path string) []string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.TrimRight(string(b), "\x00")
	return strings.Split(strings.TrimSuffix(text, "\n"), "\n")
}

func parse(t testing.TB, line string) *audit.Entry {
	t.Helper()
	e, err := audit.ParseLine([]byte(line))
	if err != nil {
		t.Fatalf("%v: %s", err, line)
	}
	return e
}

func tenant(n int) hierarchy.TenantID {
	var t hierarchy.TenantID
	copy(t.ID[:], fmt.Sprintf("tenant %09d", n))
	return t
}

// unwrap is a record such as the hot path writes.
func unwrap(n int) audit.Record {
	r := audit.Record{
		Kind:       "unwrap",
		At:         time.Date(2026, 3, 4, 5, 6, 7, n, time.UTC),
		Epoch:      1,
		Tenant:     tenant(n),
		TenantName: fmt.Sprintf("tenant-%d", n),
		Key:        "orders",
		Version:    3,
		Caller:     &hierarchy.Principal{UID: 1000, GID: 1000, PID: 4242},
		Service:    "billing",
		Outcome:    audit.OutcomeOK,
	}
	r.Envelope[0], r.Envelope[31] = 0xe1, byte(n)
	return r
}

// eventually waits for a condition.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("did not happen: %s", what)
}

// hashOf a line.
func hashOf(line string) audit.Hash { return sha256.Sum256([]byte(line)) }
