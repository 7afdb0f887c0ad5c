package cluster_test

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/kekd/kekd/cluster"
	"github.com/kekd/kekd/hierarchy"
)

// stuckLog is a disk that hangs from a moment on, before or after it has done what it was asked for.
type stuckLog struct {
	raft.LogStore
	persisted bool

	mu    sync.Mutex
	until chan struct{} // nil: it answers
}

func (s *stuckLog) hang() (again func()) {
	until := make(chan struct{})
	set := func(ch chan struct{}) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.until = ch
	}
	set(until)
	return func() { set(nil); close(until) }
}

func (s *stuckLog) wait() {
	s.mu.Lock()
	until := s.until
	s.mu.Unlock()
	if until != nil {
		<-until
	}
}

func (s *stuckLog) StoreLogs(logs []*raft.Log) error {
	if !s.persisted {
		s.wait()
		return s.LogStore.StoreLogs(logs)
	}
	err := s.LogStore.StoreLogs(logs)
	s.wait()
	return err
}

// The leader's disk hangs: the others elect another long before that leader gives up, soon enough for their leases.
// One whose disk answers again in time goes on behind the new one.
func TestALeaderWhoseDiskHangsIsDoneWithout(t *testing.T) {
	t.Parallel()
	for _, persisted := range []bool{false, true} {
		t.Run(fmt.Sprintf("persisted=%v", persisted), func(t *testing.T) {
			t.Parallel()
			m := threeVoters(t)
			disk := &stuckLog{persisted: persisted}
			m.stop("a")
			m.nodes["a"].cfg.WrapLog(func(s raft.LogStore) raft.LogStore { disk.LogStore = s; return disk })
			m.nodes["a"].cfg.DiskPatience(time.Minute)
			a := m.start("a")
			m.until("a leads", func() bool {
				lead := m.leader()
				return lead == "a" || m.nodes[lead].node.TransferLeadership(patience(t), a.ID()) == nil && a.IsLeader()
			})

			again := disk.hang()
			begun := time.Now()
			for _, through := range []string{"b", "c"} {
				c := createTenant("of-" + through)
				c.Id = id("of-" + through)
				_, err := m.nodes[through].node.Propose(patience(t), c)
				for errors.Is(err, hierarchy.ErrOutcomeUnknown) || errors.Is(err, cluster.ErrNotLeader) {
					_, err = m.nodes[through].node.Propose(patience(t), c)
				}
				if err != nil {
					t.Fatalf("%s: %v", through, err)
				}
			}
			t.Logf("commands were accepted again after %v", time.Since(begun))
			for _, name := range []string{"b", "c"} {
				is := m.nodes[name].node
				m.until(name+" has a lease", func() bool { return fresh(is, is.Lease(), 2*time.Second) })
			}
			again()
			m.until("a follows", func() bool { _, ok := a.State().TenantByName("of-c"); return ok && !a.IsLeader() })
			if err := a.Fault(); err != nil {
				t.Errorf("its disk answers again, and it has failed: %v", err)
			}
			propose(t, a, createTenant("of-a"))
		})
	}
}
