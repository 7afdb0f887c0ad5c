package audit_test

import (
	"bufio"
	"context"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kekd/kekd/hierarchy/audit"
)

// killEnv makes the test binary a process that writes to a journal until it is killed:
// directory, cluster, node and key, which is of no worth.
const killEnv = "KEKD_AUDIT_TEST_WRITE"

func TestMain(m *testing.M) {
	if spec := os.Getenv(killEnv); spec != "" {
		if err := writeUntilKilled(spec); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func writeUntilKilled(spec string) error {
	f := strings.Split(spec, ",")
	var opts audit.Options
	if err := errors.Join(opts.Cluster.UnmarshalText([]byte(f[1])), opts.Node.UnmarshalText([]byte(f[2]))); err != nil {
		return err
	}
	der, err := hex.DecodeString(f[3])
	if err != nil {
		return err
	}
	if opts.Signer, err = x509.ParseECPrivateKey(der); err != nil {
		return err
	}
	opts.SegmentSize = audit.MinSegmentSize
	opts.CheckpointRecords = 50
	opts.CheckpointInterval = 5 * time.Millisecond
	j, err := audit.Open(f[0], opts)
	if err != nil {
		return err
	}
	// What is acknowledged, and what is handed out to be anchored, goes to the parent. A line
	// is one write, so a kill leaves it whole or not there at all.
	var mu sync.Mutex
	say := func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Fprintf(os.Stdout, format, args...)
	}
	go func() {
		for c := range j.Checkpoints() {
			text, _ := c.MarshalText()
			say("anchor %x\n", text)
		}
	}()
	for w := range 4 {
		go func() {
			for i := 0; ; i++ {
				recs := []audit.Record{unwrap(w), unwrap(w + 10)}
				recs[0].Reason = fmt.Sprintf("%d-%d-%d", os.Getpid(), w, i)
				if _, err := j.Write(context.Background(), recs); err != nil {
					fmt.Fprintln(os.Stderr, err)
					os.Exit(1)
				}
				say("ack %s\n", recs[0].Reason)
			}
		}()
	}
	select {}
}

// TestKill kills a writing process, again and again: what was acknowledged is there, what was
// handed out as signed fits, and the journal goes on.
func TestKill(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	rng := rand.New(rand.NewPCG(seed, 0))
	t.Logf("seed %d", seed)
	r := newRig(t)
	r.close()
	der, err := x509.MarshalECPrivateKey(r.key)
	if err != nil {
		t.Fatal(err)
	}
	var anchors []audit.Checkpoint
	acked := make(map[string]bool)
	for round := range 20 {
		for _, l := range killed(t, fmt.Sprintf("%s,%s,%s,%x", r.dir, r.opts.Cluster, r.opts.Node, der), rng) {
			switch what, value, _ := strings.Cut(l, " "); what {
			case "ack":
				acked[value] = true
			case "anchor":
				text, err := hex.DecodeString(value)
				if err != nil {
					t.Fatal(err)
				}
				var c audit.Checkpoint
				if err := c.UnmarshalText(text); err != nil {
					t.Fatal(err)
				}
				anchors = append(anchors, c)
			}
		}
		if n := len(anchors); n > 0 {
			r.opts.Anchor = &anchors[n-1]
		}
		j, err := audit.Open(r.dir, r.opts)
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		if err := j.Close(r.ctx()); err != nil {
			t.Fatal(err)
		}
	}
	rep := r.mustVerify(anchors...)
	lost := make(map[string]bool)
	for a := range acked {
		lost[a] = true
	}
	for _, l := range r.lines() {
		delete(lost, parse(t, l).Reason)
	}
	if len(lost) > 0 {
		t.Errorf("%d acknowledged records are lost of %d", len(lost), len(acked))
	}
	if len(acked) < 100 || len(anchors) < 10 {
		t.Errorf("only %d were acknowledged and %d anchored: too few to show anything", len(acked), len(anchors))
	}
	t.Logf("%d acknowledged, %d anchored, %d records in %d segments", len(acked), len(anchors), rep.Last, len(r.segments()))
}

// killed runs a writer, kills it at some moment after it began, and returns what it said.
func killed(t *testing.T, spec string, rng *rand.Rand) []string {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), killEnv+"="+spec)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	rd := bufio.NewReader(out)
	var said []string
	for {
		l, err := rd.ReadString('\n')
		if err != nil {
			break
		}
		if said = append(said, strings.TrimSuffix(l, "\n")); len(said) == 1 {
			wait := time.Duration(rng.Int64N(int64(40 * time.Millisecond)))
			time.AfterFunc(wait, func() { cmd.Process.Kill() })
		}
	}
	cmd.Wait()
	if stderr.Len() > 0 {
		t.Fatalf("the writer says: %s", stderr.String())
	}
	return said
}
