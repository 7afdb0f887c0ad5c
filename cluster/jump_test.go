package cluster_test

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// Wall clocks jump while nodes run, by an hour and by a year, ahead and back: the leader's alone, which the median
// outvotes, and those of all. Cluster time goes on at its own pace, the leader leads, leases are renewed, commands are taken.
func TestWallClocksJump(t *testing.T) {
	t.Parallel()
	m := threeVoters(t)
	offsets := map[string]*atomic.Int64{}
	for name, is := range m.nodes {
		m.stop(name)
		offset := new(atomic.Int64)
		offsets[name] = offset
		is.cfg.Wall = func() time.Time { return time.Now().Add(time.Duration(offset.Load())) }
	}
	for name := range m.nodes {
		m.start(name)
	}
	const year = 365 * 24 * time.Hour
	for _, all := range []bool{false, true} {
		for _, jump := range []time.Duration{time.Hour, year, -time.Hour, -year} {
			leader := m.leader()
			lead := m.nodes[leader].node
			begun, was := time.Now(), lead.State().Stamp()
			for name, offset := range offsets {
				if all || name == leader {
					offset.Store(int64(jump))
				}
			}
			for name, is := range m.nodes {
				propose(t, is.node, createTenant(fmt.Sprintf("t-%v-%d-%s", all, int64(jump.Hours()), name)))
				<-is.node.Renewed()
			}
			passed := lead.State().Stamp().Sub(was)
			if most := time.Since(begun) + time.Minute; passed < 0 || passed > most {
				t.Errorf("all=%v, by %v: cluster time moved by %v, in less than %v", all, jump, passed, most)
			}
			said := false
			for name, is := range m.nodes {
				said = said || strings.Contains(is.log.String(), "the wall clocks jumped")
				offsets[name].Store(0)
			}
			if said != all {
				t.Errorf("all=%v, by %v: a log says that the wall clocks jumped: %v", all, jump, said)
			}
			for _, is := range m.nodes {
				<-is.node.Renewed() // the leader knows again that they are right
			}
		}
	}
}
