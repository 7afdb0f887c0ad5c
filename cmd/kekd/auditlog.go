package main

import (
	"context"
	"fmt"
	"iter"
	"strings"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/audit"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/state"
	"github.com/kekd/kekd/unix-socket-api"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

// auditLog is the journal as administration uses it.
type auditLog struct {
	journal func() (*audit.Journal, error) // an error says why there is none yet
	state   func() *state.State
	self    hierarchy.NodeID
	cluster hierarchy.ClusterID
}

func (l *auditLog) Append(ctx context.Context, r socketapi.AdminRecord) (uint64, error) {
	detail := r.Detail
	if !r.Command.IsZero() {
		if detail != "" {
			detail += "; "
		}
		detail += "command " + r.Command.String()
	}
	to, err := l.journal()
	if err != nil {
		return 0, err
	}
	p, err := to.Write(ctx, []audit.Record{{
		Kind: r.Kind, Epoch: l.state().Epoch(),
		Tenant: r.Tenant, TenantName: r.TenantName, Key: r.Key, Version: r.Version,
		Caller: &r.Caller, Service: r.Service,
		Outcome: audit.Outcome(r.Outcome), Code: r.Code, Reason: r.Reason, Detail: detail, Of: r.Of,
	}})
	return p.Sequence, err
}

func (l *auditLog) Tail(ctx context.Context, tenant hierarchy.TenantID, last int, follow bool) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		from, err := l.journal()
		if err != nil {
			yield(nil, err)
			return
		}
		var f *audit.Follower
		if follow {
			f = from.Follow(tenant) // before the past is read, so that nothing falls between
			defer f.Close()
		}
		var seen uint64
		for line, err := range from.Tail(ctx, tenant, last) {
			seen = line.Sequence
			if !yield(line.JSON, err) || err != nil {
				return
			}
		}
		for follow {
			line, err := f.Next(ctx)
			switch {
			case ctx.Err() != nil:
				return
			case err != nil:
				yield(nil, err)
				return
			case line.Missed > 0:
				yield(nil, fmt.Errorf("%w: the reader is too slow: %d records were passed over; they are in the journal", hierarchy.ErrRateLimited, line.Missed))
				return
			case line.Sequence <= seen:
			default:
				if !yield(line.JSON, nil) {
					return
				}
			}
		}
	}
}

// Kinds of events that are in no journal.
const (
	kindWatch  = "watch"
	kindMissed = "missed"
)

func (l *auditLog) Watch(ctx context.Context, tenant hierarchy.TenantID) iter.Seq2[*kekdv1.TenantEvent, error] {
	return func(yield func(*kekdv1.TenantEvent, error) bool) {
		from, err := l.journal()
		if err != nil {
			yield(nil, err)
			return
		}
		f := from.Follow(tenant)
		defer f.Close()
		if !yield(&kekdv1.TenantEvent{Time: time.Now().UnixNano(), Kind: kindWatch, Outcome: string(audit.OutcomeOK)}, nil) {
			return
		}
		for {
			line, err := f.Next(ctx)
			if ctx.Err() != nil {
				return
			}
			if err != nil {
				yield(nil, fmt.Errorf("%w: %w", hierarchy.ErrAuditUnavailable, err))
				return
			}
			if line.Missed > 0 && !yield(&kekdv1.TenantEvent{Time: time.Now().UnixNano(), Kind: kindMissed, Missed: line.Missed}, nil) {
				return
			}
			if line.JSON == nil {
				continue
			}
			e, err := audit.ParseLine(line.JSON)
			if err != nil {
				yield(nil, err)
				return
			}
			if !yield(eventOf(e), nil) {
				return
			}
		}
	}
}

func eventOf(e *audit.Entry) *kekdv1.TenantEvent {
	m := &kekdv1.TenantEvent{
		Time: e.At.UnixNano(), Kind: e.Kind, Outcome: string(e.Outcome), Code: e.Code, Key: e.Key, Version: e.Version,
		Service: e.Service, Reason: e.Reason, Detail: e.Detail, Sequence: e.Sequence,
	}
	if c := e.Caller; c != nil {
		m.Caller = &kekdv1.Caller{Uid: c.UID, Gid: c.GID, Pid: c.PID}
	}
	return m
}

func (l *auditLog) Verify(ctx context.Context) (*kekdv1.VerifyAuditResponse, error) {
	var anchors []audit.Checkpoint
	if a, ok := l.state().Anchor(l.self); ok {
		anchors = append(anchors, audit.Checkpoint{Cluster: l.cluster, Node: a.Node, Sequence: a.Sequence, Head: a.Head, Signature: a.Signature})
	}
	of, err := l.journal()
	if err != nil {
		return nil, err
	}
	report, err := of.Verify(ctx, anchors)
	if err != nil {
		return nil, err
	}
	resp := &kekdv1.VerifyAuditResponse{Ok: report.OK()}
	for _, c := range report.Chains {
		chain := &kekdv1.AuditChain{Node: l.self.String(), Records: c.Records, Head: c.Head.String()}
		if !c.Tenant.IsZero() {
			chain.Tenant = c.Tenant.String()
			if t, ok := l.state().Tenant(c.Tenant); ok {
				chain.Tenant = t.Name
			}
		}
		resp.Chains = append(resp.Chains, chain)
	}
	for _, f := range report.Faults {
		where, _, _ := strings.Cut(f.String(), ": ")
		resp.Faults = append(resp.Faults, &kekdv1.AuditFault{Where: where, What: fmt.Sprintf("%s: %s", f.Kind, f.Detail)})
	}
	return resp, nil
}

// anchorCommand fixes a signed head in the hierarchy.
func anchorCommand(c audit.Checkpoint) *commandpb.Command {
	return &commandpb.Command{Body: &commandpb.Command_AnchorAudit{AnchorAudit: &commandpb.AnchorAudit{
		NodeId: c.Node.ID[:], Sequence: c.Sequence, Head: c.Head[:], Signature: c.Signature,
	}}}
}
