package socketapi

// Load is what the callers of a socket hold at a moment, and how many were refused for holding too much.
type Load struct {
	Connections int
	Calls       int64 // that are not answered yet; a stream is one
	Operations  int64 // on data keys, that are not answered yet

	RefusedConnections uint64 // since the server was made
	RefusedCalls       uint64 // and single messages of streams
}

// Load looks at the socket's counts.
func (s *Server) Load() Load {
	g := s.gate
	g.mu.Lock()
	conns := g.conns
	g.mu.Unlock()
	return Load{
		Connections: conns, Calls: g.calls.Load(), Operations: g.ops.Load(),
		RefusedConnections: g.refusedConns.Load(), RefusedCalls: g.refusedCalls.Load(),
	}
}
