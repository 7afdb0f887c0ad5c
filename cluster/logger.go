package cluster

import (
	"context"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

// raftLogger has raft log to slog. What raft logs is terms, indexes, addresses and errors of the
// stores; it never looks into an entry.
func raftLogger(log *slog.Logger) hclog.Logger {
	l := hclog.NewInterceptLogger(&hclog.LoggerOptions{Output: io.Discard, Level: hclog.Debug})
	l.RegisterSink(&slogSink{log: log.With("component", "raft"), said: map[string]*repeated{}})
	return l
}

// routine is what raft warns of, several times a second and for each node, whenever a node starts, stops or is away:
// nothing is wrong with the node that logs it. Of the others and of leaders this package tells itself.
var routine = map[string]bool{
	"failed to heartbeat to": true, "failed to appendEntries to": true, "failed to pipeline appendEntries": true,
	"failed to start pipeline replication to": true, "failed to contact": true, "failed to make requestVote RPC": true,
	"appendEntries rejected, sending older logs": true, "failed to get previous log": true, "previous log term mis-match": true,
	"Election timeout reached, restarting election": true, "rejecting vote request since we have a leader": true,
	"rejecting pre-vote request since we have a leader": true, "peer has newer term, stopping replication": true,
}

// sayAgain is when a message that goes on is worth another line.
const sayAgain = time.Minute

type slogSink struct {
	log *slog.Logger

	mu   sync.Mutex
	said map[string]*repeated // by message: raft has some two hundred
}

// repeated is a message that was said a short while ago.
type repeated struct {
	at   time.Time
	more int // times that it was not said since
}

func (s *slogSink) Accept(_ string, level hclog.Level, msg string, args ...any) {
	to := slog.LevelDebug
	switch {
	case routine[msg]:
	case level == hclog.Warn:
		to = slog.LevelWarn
	case level == hclog.Error:
		to = slog.LevelError
	}
	// Raft's Info is a line for each snapshot and election: detail for us.
	if to > slog.LevelDebug {
		more, now := s.again(msg)
		if !now {
			return
		}
		if more > 0 {
			args = append(args[:len(args):len(args)], "repeated", more)
		}
	}
	s.log.Log(context.Background(), to, msg, args...)
}

// again tells whether a message is to be said now, and how often it was not since it was last.
func (s *slogSink) again(msg string) (more int, now bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	last := s.said[msg]
	if last != nil && time.Since(last.at) < sayAgain {
		last.more++
		return 0, false
	}
	if last != nil {
		more = last.more
	}
	s.said[msg] = &repeated{at: time.Now()}
	return more, true
}
