package cluster_test

import (
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kekd/kekd/cluster"
)

// warned are the lines of a log that somebody is to look at.
func (l *logged) warned() (lines []string) {
	for line := range strings.Lines(l.String()) {
		if strings.Contains(line, "level=WARN") || strings.Contains(line, "level=ERROR") {
			lines = append(lines, line)
		}
	}
	return lines
}

// Raft repeats itself many times a second: what is wrong is said once in a minute, and what is not, in detail only.
func TestRaftsLogDoesNotFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := new(logged)
		raft := cluster.RaftLogger(slog.New(slog.NewTextHandler(log, nil)))
		for range 100 {
			raft.Error("failed to heartbeat to", "peer", "b", "error", errors.New("refused"))
			raft.Error("failed to take snapshot", "error", errors.New("no space left on device"))
			raft.Warn("clearing log suffix", "from", 7)
			raft.Info("entering follower state")
		}
		first := log.warned()
		if len(first) != 2 || !strings.Contains(first[0], "no space left on device") || !strings.Contains(first[1], "from=7") || strings.Contains(first[0], "repeated") {
			t.Errorf("of what goes on it says\n%s", log)
		}
		time.Sleep(time.Minute)
		raft.Error("failed to take snapshot", "error", errors.New("no space left on device"))
		if again := log.warned(); len(again) != 3 || !strings.Contains(again[2], "repeated=99") {
			t.Errorf("a minute later it says\n%s", log)
		}
		if strings.Contains(log.String(), "entering follower") || strings.Contains(log.String(), "heartbeat") {
			t.Errorf("details stand in it:\n%s", log)
		}
	})
}

// A node that is away for a while is worth two lines in the leader's log, and a change of leaders a few in each.
func TestLogsOfNodesThatComeAndGo(t *testing.T) {
	t.Parallel()
	m := threeVoters(t)
	m.allRegistered()
	leader := m.leader()
	is, away := m.nodes[leader], m.other(leader)
	has := func(text string) func() bool {
		return func() bool { return strings.Contains(is.log.String(), text) }
	}
	before := len(is.log.warned())
	m.stop(away)
	m.until("the leader says that a node is away", has(`level=WARN msg="a node is not heard of: it has ended, stands still, or is cut off" of=`+away))
	m.start(away)
	m.until("the leader says that it is back", has(`level=INFO msg="a node is heard of again" of=`+away))
	if lines := is.log.warned()[before:]; len(lines) > 3 || strings.Count(is.log.String(), "is not heard of") != 1 {
		t.Errorf("a node that was away for seconds is worth %d lines:\n%s", len(lines), strings.Join(lines, ""))
	}

	m.allRegistered()
	follows := m.nodes[m.other(leader)]
	before = len(follows.log.warned())
	m.stop(leader)
	next := m.leader()
	m.until("who leads stands in the log", func() bool {
		return strings.Contains(follows.log.String(), `level=INFO msg="a node leads" of=`+next)
	})
	if lines := follows.log.warned()[before:]; len(lines) > 4 {
		t.Errorf("a change of leaders is worth %d lines:\n%s", len(lines), strings.Join(lines, ""))
	}
}
