package audit

import (
	"context"
	"fmt"
	"time"

	"github.com/kekd/kekd/hierarchy"
)

// seal asks for a checkpoint of one record.
type seal struct {
	at     Position
	answer chan sealAnswer // of capacity 1
}

type sealAnswer struct {
	checkpoint Checkpoint
	err        error
}

// Seal appends a record and has this very record signed, whatever else is appended meanwhile.
// The record names its tenant's last one, so the checkpoint also fixes the tenant's chain up to
// it: that is how a tenant's records are exported so that nothing can be left off their end. It
// returns when both are durable.
func (j *Journal) Seal(ctx context.Context, rec Record) (Checkpoint, error) {
	s := &seal{answer: make(chan sealAnswer, 1)}
	if _, err := j.append(ctx, []Record{rec}, s); err != nil {
		return Checkpoint{}, err
	}
	wake(j.wakeSealer)
	select {
	case a := <-s.answer:
		return a.checkpoint, a.err
	case <-j.sealerDone:
		// It may have answered last.
		select {
		case a := <-s.answer:
			return a.checkpoint, a.err
		default:
		}
		if err := j.Healthy(); err != nil {
			return Checkpoint{}, err
		}
		return Checkpoint{}, fmt.Errorf("%w: record %d is not signed: the audit journal is closed", hierarchy.ErrAuditUnavailable, s.at.Sequence)
	case <-ctx.Done():
		return Checkpoint{}, fmt.Errorf("record %d is not signed yet: %w", s.at.Sequence, context.Cause(ctx))
	}
}

// sealer signs heads. Signing may take long, and hang with the HSM: nothing waits for it but
// who asked for a signature.
func (j *Journal) sealer(due bool) {
	defer close(j.sealerDone)
	defer close(j.checkpoints)
	ticker := time.NewTicker(j.opts.CheckpointInterval)
	defer ticker.Stop()
	// due: the head is to be signed if it is new. So it is when the ticker says so, in the end, and
	// at first if an earlier run left it unsigned.
	resting := false // after a failure, until the ticker says so
	for stopping := false; ; {
		for {
			target, request := j.toSeal(due, resting)
			if target.Sequence == 0 {
				break
			}
			c, err := j.sealOne(target)
			if request != nil {
				request.answer <- sealAnswer{c, err}
			} else {
				due = false
			}
			resting = resting || err != nil
		}
		due = false
		if stopping {
			return
		}
		select {
		case <-ticker.C:
			due, resting = true, false
		case <-j.wakeSealer:
		case <-j.stopSealer:
			due, resting, stopping = true, false, true
		case <-j.failed:
			return
		}
	}
}

// toSeal picks what to sign next: what was asked for, in order, and else the head if it is due
// and new. The sequences that are signed so only ever rise, and the verifier relies on that.
func (j *Journal) toSeal(due, resting bool) (Position, *seal) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.seals) > 0 {
		s := j.seals[0]
		j.seals = j.seals[1:]
		return s.at, s
	}
	many := j.chain.seq-j.signed >= j.opts.CheckpointRecords
	if j.lastData <= j.signed || resting || !due && !many {
		return Position{}, nil
	}
	return j.head, nil
}

// sealOne signs a head, once it is durable, and hands the checkpoint out, once that is durable.
func (j *Journal) sealOne(at Position) (Checkpoint, error) {
	c, err := j.signHead(at)
	j.mu.Lock()
	if err != nil {
		if j.signErr == nil && j.err == nil {
			j.opts.Log.Error("audit journal: the head is not signed", "record", at.Sequence, "error", err)
		}
		j.signErr = err
		j.mu.Unlock()
		return Checkpoint{}, err
	}
	j.signErr = nil
	j.mu.Unlock()

	select {
	case j.checkpoints <- c:
	default: // the reader is slow: what it has not taken is outdated
		select {
		case <-j.checkpoints:
		default:
		}
		j.checkpoints <- c // nobody else sends
	}
	return c, nil
}

func (j *Journal) signHead(at Position) (Checkpoint, error) {
	ctx := context.Background() // a journal that fails ends every wait; closing one does not wait for this
	if err := j.Wait(ctx, at); err != nil {
		return Checkpoint{}, err
	}
	c := Checkpoint{Cluster: j.opts.Cluster, Node: j.opts.Node, Sequence: at.Sequence, Head: at.Hash}
	if err := c.sign(j.opts.Signer); err != nil {
		return Checkpoint{}, err
	}
	if err := c.Verify(j.key); err != nil {
		return Checkpoint{}, err
	}

	// A checkpoint has no time of its own: its place is between two records that have, and
	// nothing else in it would be left unsigned.
	e := Entry{Record: Record{Kind: KindCheckpoint}, Node: j.opts.Node, Checkpoint: &c}
	p, err := j.appendCheckpoint(ctx, &e)
	if err != nil {
		return Checkpoint{}, err
	}
	return c, j.Wait(ctx, p)
}

func (j *Journal) appendCheckpoint(ctx context.Context, e *Entry) (Position, error) {
	body := e.appendBody(nil)
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.admit(ctx, len(body)+maxPlace, true); err != nil {
		return Position{}, err
	}
	j.put(body, hierarchy.TenantID{})
	j.signed = e.Checkpoint.Sequence
	return j.appended(), nil
}
