package state_test

import (
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/kekd/kekd/hierarchy/commandpb"
)

// TestHolds: what a command did stands until something undoes it, and again once it was done again.
func TestHolds(t *testing.T) {
	suspend, resume := commandpb.VersionAction_VERSION_ACTION_SUSPEND, commandpb.VersionAction_VERSION_ACTION_RESUME
	for name, c := range map[string]struct{ done, undone *commandpb.Command }{
		"disabled":       {disable("acme"), enable("acme")},
		"suspended":      {versionAction("acme", "orders", 1, suspend), versionAction("acme", "orders", 1, resume)},
		"staleness":      {setTenant("acme", ptr(int64(3*time.Second))), setTenant("acme", ptr(int64(4*time.Second)))},
		"rotation":       {setKey("acme", "orders", ptr(int64(48*time.Hour)), nil), setKey("acme", "orders", ptr(int64(72*time.Hour)), nil)},
		"service":        {createService("hr", ptr(uint32(77)), nil), deleteService("hr")},
		"rule":           {allow("billing", "acme/invoices"), revoke("billing", "acme/invoices")},
		"rule replaced":  {allow("billing", "acme/invoices"), allow("billing", "acme/invoices", &commandpb.RequiredContext{Key: "app"})},
		"another's name": {createService("hr", ptr(uint32(77)), nil), nil},
		"tenant":         {createTenant("initech"), nil},
		"removed":        {removeNode(nodeB), nil},
		"demoted":        {setNode(nodeB, nil, ptr(false)), setNode(nodeB, nil, ptr(true))},
		"minting":        {setMinting(regionID, nodeID, nodeB), setMinting(regionID, nodeB, nodeID)},
		"key":            {createKey("acme", "more"), nil},
	} {
		t.Run(name, func(t *testing.T) {
			m := populated(t)
			m.do(t, proto.Clone(c.done).(*commandpb.Command))
			if !m.s.Holds(c.done) {
				t.Error("it does not hold right after it was done")
			}
			if c.undone == nil {
				return
			}
			m.do(t, c.undone)
			if m.s.Holds(c.done) {
				t.Error("it holds after it was undone")
			}
			again := proto.Clone(c.done).(*commandpb.Command)
			again.Id = id("again")
			m.do(t, again)
			if !m.s.Holds(c.done) {
				t.Error("it does not hold after it was done again")
			}
		})
	}
	// What is used once is not done again.
	for name, c := range map[string]struct{ done, undone *commandpb.Command }{
		"invited": {invite("d", "us-east", replica, false), join("d", "us-east")},
		"joined":  {join("next", "eu-west"), removeNode(nodeOf("next"))},
	} {
		m := populated(t)
		m.do(t, c.done)
		if !m.s.Holds(c.done) {
			t.Errorf("%s: it does not hold right after it was done", name)
		}
		m.do(t, c.undone)
		if m.s.Holds(c.done) {
			t.Errorf("%s: it holds after it was undone", name)
		}
	}
	t.Run("what took away", func(t *testing.T) {
		m := populated(t)
		m.do(t, allow("billing", "acme/invoices"))
		gone := revoke("billing", "acme/invoices")
		m.do(t, gone)
		if !m.s.Holds(gone) {
			t.Error("a revoked rule is there")
		}
		m.do(t, allow("billing", "acme/invoices"))
		if m.s.Holds(gone) {
			t.Error("a rule that was allowed again counts as revoked")
		}
		m.do(t, createService("hr", ptr(uint32(77)), nil))
		dropped := deleteService("hr")
		m.do(t, dropped)
		if !m.s.Holds(dropped) {
			t.Error("a deleted service is there")
		}
		m.do(t, createService("hr", ptr(uint32(78)), nil))
		if m.s.Holds(dropped) || m.s.Holds(createService("hr", ptr(uint32(77)), nil)) {
			t.Error("another service of the name counts as the first, or as none")
		}
	})
}
