package history

import (
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"
)

// searchTime is how long one tenant's history may be searched. Those of the tests take milliseconds.
const searchTime = time.Minute

var model = porcupine.Model{
	Init: func() any { return tenant{} },
	Step: func(state, input, _ any) (bool, any) {
		next, err := state.(tenant).step(input.(placed))
		return err == nil, next
	},
	DescribeOperation: func(input, _ any) string { return input.(placed).String() },
	DescribeState:     func(state any) string { return state.(tenant).String() },
}

// linear judges one tenant's commands, and its reads as their indexes place them.
func linear(name string, ops []Operation) (Violation, bool) {
	answers := place(ops)
	searched := make([]porcupine.Operation, len(answers))
	for i, p := range answers {
		searched[i] = porcupine.Operation{ClientId: p.Client, Input: p, Call: p.from, Return: p.to}
	}
	v := Violation{Tenant: name, Rule: "linearizable"}
	switch porcupine.CheckOperationsTimeout(model, searched, searchTime) {
	case porcupine.Ok:
		return v, false
	case porcupine.Unknown:
		v.Text = fmt.Sprintf("not decided within %v: too much of it happened at the same time", searchTime)
		return v, true
	}
	_, info := porcupine.CheckOperationsVerbose(model, searched, searchTime)
	v.Text, v.picture = whyNot(answers, info.PartialLinearizations()[0]), &info
	return v, true
}

// whyNot tells how far the longest order goes that the answers allow, and why nothing can follow.
func whyNot(answers []placed, orders [][]int) string {
	var longest []int
	for _, order := range orders {
		if len(order) > len(longest) {
			longest = order
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%d of %d answers can be put in an order. ", len(longest), len(answers)-1)
	var state tenant
	done := make([]bool, len(answers))
	for _, i := range longest {
		state, _ = state.step(answers[i])
		done[i] = true
	}
	if len(longest) > 0 {
		b.WriteString("The last of them:")
		for _, i := range longest[max(0, len(longest)-3):] {
			fmt.Fprintf(&b, "\n    %v", answers[i])
		}
		b.WriteString("\n  ")
	}
	fmt.Fprintf(&b, "Then the state is: %v. ", state)
	// Whatever is called after something else has returned comes after it.
	soonest := int64(math.MaxInt64)
	for i, p := range answers {
		if !done[i] {
			soonest = min(soonest, p.to)
		}
	}
	b.WriteString("None of these can be next:")
	for i, p := range answers {
		if done[i] || p.from > soonest {
			continue
		}
		why := "then others cannot follow"
		if _, err := state.step(p); err != nil {
			why = err.Error()
		}
		fmt.Fprintf(&b, "\n    %v\n      %s", p, why)
	}
	return b.String()
}
