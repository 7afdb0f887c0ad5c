package socketapi

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"
)

// guarded lets only those connections through to gRPC whose peer is known and within its
// limits; the others are closed at once, before they cost anything.
type guarded struct {
	net.Listener
	gate *gate
	log  *slog.Logger

	refused int // since the last warning; only Accept's goroutine uses it
	warned  time.Time
}

func (l *guarded) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			if !errors.Is(err, net.ErrClosed) { // no descriptors left, for one: gRPC waits, and says nothing
				l.warn(err)
			}
			return nil, err
		}
		u, ok := c.(*net.UnixConn)
		if !ok {
			return nil, errors.Join(fmt.Errorf("a connection of type %T has no peer credentials", c), c.Close())
		}
		admitted, err := l.gate.admit(u)
		if err == nil {
			return admitted, nil
		}
		u.Close()
		l.gate.refusedConns.Add(1)
		l.warn(err)
	}
}

// warn tells of refused connections, and not so often that they fill the log.
func (l *guarded) warn(err error) {
	l.refused++
	if now := time.Now(); now.Sub(l.warned) > 10*time.Second {
		l.log.Warn("connections refused", "count", l.refused, "socket", l.Addr().String(), "last", err)
		l.refused, l.warned = 0, now
	}
}
