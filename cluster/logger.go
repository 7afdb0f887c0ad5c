package cluster

import (
	"context"
	"io"
	"log/slog"

	"github.com/hashicorp/go-hclog"
)

// raftLogger has raft log to slog. What raft logs is terms, indexes, addresses and errors of the
// stores; it never looks into an entry.
func raftLogger(log *slog.Logger) hclog.Logger {
	l := hclog.NewInterceptLogger(&hclog.LoggerOptions{Output: io.Discard, Level: hclog.Debug})
	l.RegisterSink(&slogSink{log.With("component", "raft")})
	return l
}

type slogSink struct{ log *slog.Logger }

func (s *slogSink) Accept(_ string, level hclog.Level, msg string, args ...any) {
	to := slog.LevelDebug
	switch level {
	case hclog.Warn:
		to = slog.LevelWarn
	case hclog.Error:
		to = slog.LevelError
	}
	// Raft's Info is a line for each snapshot and election: detail for us.
	s.log.Log(context.Background(), to, msg, args...)
}
