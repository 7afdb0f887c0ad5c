package main

import (
	"time"

	"github.com/spf13/cobra"

	"github.com/kekd/kekd/hierarchy/policy"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

const limitUsage = "`COUNT/UNIT` of uses: at most one per s or m, on each node, and one per h or d, over all nodes"

type limitOut struct {
	Count uint64 `json:"count"`
	Per   string `json:"per"` // as a duration
}

func newLimitsOut(list []*kekdv1.Limit) []limitOut {
	out := make([]limitOut, 0, len(list))
	for _, l := range list {
		out = append(out, limitOut{l.Count, formatDuration(time.Duration(l.Per))})
	}
	return out
}

// limitTexts are limits as they are written for a flag.
func limitTexts(list []*kekdv1.Limit) (texts []string) {
	for _, l := range list {
		texts = append(texts, policy.Limit{Count: l.Count, Per: time.Duration(l.Per)}.String())
	}
	return texts
}

// parseLimits reads the flags --limit.
func parseLimits(texts []string) ([]*kekdv1.Limit, error) {
	limits, err := policy.ParseLimits(texts)
	if err != nil {
		return nil, err
	}
	var list []*kekdv1.Limit
	for _, l := range limits.List() {
		list = append(list, &kekdv1.Limit{Count: l.Count, Per: int64(l.Per)})
	}
	return list, nil
}

// noLimits is what lifts all limits.
const noLimits = "none"

// parseLimitsOrNone also reads a lone none.
func parseLimitsOrNone(cmd *cobra.Command, texts []string) (*kekdv1.Limits, error) {
	for _, s := range texts {
		if s != noLimits {
			continue
		}
		if len(texts) > 1 {
			return nil, usagef(cmd, "--limit none stands alone: it lifts all limits")
		}
		return &kekdv1.Limits{}, nil
	}
	list, err := parseLimits(texts)
	return &kekdv1.Limits{Limits: list}, err
}
