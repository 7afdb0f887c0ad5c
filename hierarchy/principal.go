package hierarchy

import "fmt"

// Principal is who asked: the peer's credentials as the kernel tells them (SO_PEERCRED).
type Principal struct {
	UID uint32
	GID uint32
	PID int32
}

func (p Principal) String() string { return fmt.Sprintf("uid=%d gid=%d pid=%d", p.UID, p.GID, p.PID) }
