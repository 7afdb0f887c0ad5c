package socketapi

import (
	"time"

	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/policy"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

func limitsOf(list []*kekdv1.Limit) (policy.Limits, error) {
	var limits []policy.Limit
	for _, m := range list {
		limits = append(limits, policy.Limit{Count: m.GetCount(), Per: time.Duration(m.GetPer())})
	}
	return policy.NewLimits(limits...)
}

func limitMessages(ls policy.Limits) (list []*kekdv1.Limit) {
	for _, l := range ls.List() {
		list = append(list, &kekdv1.Limit{Count: l.Count, Per: int64(l.Per)})
	}
	return list
}

func limitCommands(ls policy.Limits) (list []*commandpb.Limit) {
	for _, l := range ls.List() {
		list = append(list, &commandpb.Limit{Count: l.Count, Per: int64(l.Per)})
	}
	return list
}
