package main

import (
	"fmt"
	"slices"
	"time"

	"google.golang.org/grpc"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/policy"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

// limitsOf reads limits as they are sent.
func limitsOf(list []*kekdv1.Limit) (policy.Limits, error) {
	var limits []policy.Limit
	for _, l := range list {
		limits = append(limits, policy.Limit{Count: l.Count, Per: time.Duration(l.Per)})
	}
	return policy.NewLimits(limits...)
}

func limitProtos(ls policy.Limits) (list []*kekdv1.Limit) {
	for _, l := range ls.List() {
		list = append(list, &kekdv1.Limit{Count: l.Count, Per: int64(l.Per)})
	}
	return list
}

// use counts one use against the limits of a rule and of its tenant, or against none.
func (h *fakeHierarchy) use(t *kekdv1.Tenant, r *policy.Rule) error {
	limits, err := limitsOf(t.Limits)
	if err != nil {
		return err
	}
	now := time.Now()
	var windows []string
	for owner, ls := range map[string]policy.Limits{"tenant": limits, "rule of " + r.Service + " for " + r.Pattern.String(): r.Limits} {
		for _, l := range ls.List() {
			window := fmt.Sprint(t.Name, owner, l.Per, l.Window(now))
			if h.used[window] >= l.Count {
				over := &hierarchy.OverLimit{Limit: fmt.Sprintf("the %s allows %s", owner, l), Wait: l.Window(now).Add(l.Per).Sub(now)}
				if !h.refused[window] {
					h.refused[window], over.Detail = true, over.Limit
				}
				return over
			}
			windows = append(windows, window)
		}
	}
	for _, w := range windows {
		h.used[w]++
	}
	return nil
}

func (h *fakeHierarchy) miss(n uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.missed = n
}

func (f *fakeAdmin) WatchTenant(r *kekdv1.WatchTenantRequest, out grpc.ServerStreamingServer[kekdv1.TenantEvent]) error {
	f.h.mu.Lock()
	_, err := f.h.tenant(r.Name)
	seen := len(f.h.records)
	f.h.mu.Unlock()
	if err != nil {
		return err
	}
	if err := out.Send(&kekdv1.TenantEvent{Time: time.Now().UnixNano(), Kind: "watch", Outcome: "ok"}); err != nil {
		return err
	}
	for {
		select {
		case <-out.Context().Done():
			return out.Context().Err()
		case <-time.After(5 * time.Millisecond):
		}
		f.h.mu.Lock()
		fresh := slices.Clone(f.h.records[seen:])
		seen += len(fresh)
		missed := f.h.missed
		f.h.missed = 0
		f.h.mu.Unlock()
		if missed > 0 {
			if err := out.Send(&kekdv1.TenantEvent{Time: time.Now().UnixNano(), Kind: "missed", Missed: missed}); err != nil {
				return err
			}
		}
		for _, record := range fresh {
			if r.Name != record.Tenant {
				continue
			}
			at, err := time.Parse(time.RFC3339Nano, record.At)
			if err != nil {
				return err
			}
			e := &kekdv1.TenantEvent{
				Time: at.UnixNano(), Kind: record.Kind, Outcome: record.Outcome, Code: record.Code, Key: record.Key,
				Service: record.Service, Reason: record.Reason, Detail: record.Detail, Sequence: uint64(record.Seq),
			}
			if record.UID != nil {
				e.Caller = &kekdv1.Caller{Uid: *record.UID}
			}
			if err := out.Send(e); err != nil {
				return err
			}
		}
	}
}
