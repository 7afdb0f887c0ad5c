package main

import (
	"io"
	"strings"

	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

type ruleOut struct {
	Service         string           `json:"service"`
	Pattern         string           `json:"pattern"`
	Ops             []string         `json:"ops"`
	RequiredContext []requirementOut `json:"required_context"`
	RequireReason   bool             `json:"require_reason"`
	Limits          []limitOut       `json:"limits"`
	*fenceOut
}

type requirementOut struct {
	Key   string  `json:"key"`
	Value *string `json:"value,omitempty"` // absent: any
}

func newRuleOut(r *kekdv1.Rule) ruleOut {
	out := ruleOut{
		Service:         r.Service,
		Pattern:         r.Pattern,
		Ops:             append([]string{}, r.Ops...),
		RequiredContext: make([]requirementOut, 0, len(r.RequiredContext)),
		RequireReason:   r.RequireReason,
		Limits:          newLimitsOut(r.Limits),
		fenceOut:        newFenceOut(r.Fence),
	}
	for _, c := range r.RequiredContext {
		out.RequiredContext = append(out.RequiredContext, requirementOut{c.Key, c.Value})
	}
	return out
}

func (a *app) printRules(v any, rules ...*kekdv1.Rule) error {
	return a.print(v, func(w io.Writer) {
		row(w, "SERVICE", "PATTERN", "OPS", "REQUIRED CONTEXT", "REASON REQUIRED", "LIMITS")
		for _, r := range rules {
			row(w, r.Service, r.Pattern, strings.Join(r.Ops, ","), requirements(r), yesNo(r.RequireReason), strings.Join(limitTexts(r.Limits), " "))
		}
		if len(rules) == 1 {
			writeFence(w, rules[0].Fence)
		}
	})
}

// ruleText is a rule as the flags that made it.
func ruleText(r *kekdv1.Rule) string {
	text := r.Service + " " + r.Pattern + " --ops " + strings.Join(r.Ops, ",")
	for _, c := range r.RequiredContext {
		text += " --require-context " + shellQuote(requirement(c))
	}
	if r.RequireReason {
		text += " --require-reason"
	}
	for _, l := range limitTexts(r.Limits) {
		text += " --limit " + l
	}
	return text
}

func requirements(r *kekdv1.Rule) string {
	var all []string
	for _, c := range r.RequiredContext {
		all = append(all, requirement(c))
	}
	return strings.Join(all, " ")
}

func requirement(c *kekdv1.RequiredContext) string {
	if c.Value == nil {
		return c.Key
	}
	return c.Key + "=" + *c.Value
}
