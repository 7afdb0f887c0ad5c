package client

import (
	"os"
	"slices"
	"strings"

	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

// Where the sockets are, unless something else is said.
const (
	DefaultSocket      = "/run/kekd/kekd.sock"
	DefaultAdminSocket = "/run/kekd/admin.sock"
)

// DialKeys is the generated client of kekd.sock. The sockets are as for [Dial].
func DialKeys(sockets ...string) (kekdv1.KeyServiceClient, *Conn, error) {
	conn, err := dial(KeySockets(sockets...))
	if err != nil {
		return nil, nil, err
	}
	return kekdv1.NewKeyServiceClient(conn), conn, nil
}

// DialAdmin is the generated client of admin.sock. Without a socket it takes those of
// $KEKD_ADMIN_SOCKET, or else [DefaultAdminSocket].
//
// What only reads is asked of the next socket as data keys are. A change is tried at the next one only
// where it is certain that nothing was done: nobody took the connection, or a daemon has said that it
// stops, or that it does not know a leader.
func DialAdmin(sockets ...string) (kekdv1.AdminServiceClient, *Conn, error) {
	conn, err := dial(AdminSockets(sockets...))
	if err != nil {
		return nil, nil, err
	}
	return kekdv1.NewAdminServiceClient(conn), conn, nil
}

// KeySockets are the paths that [Dial] and [DialKeys] take of what is given.
func KeySockets(sockets ...string) []string { return paths(sockets, "KEKD_SOCKET", DefaultSocket) }

// AdminSockets are the paths that [DialAdmin] and [Metrics] take of what is given.
func AdminSockets(sockets ...string) []string {
	return paths(sockets, "KEKD_ADMIN_SOCKET", DefaultAdminSocket)
}

// paths are those that were given, each alone or several with commas between them; without any,
// those of the environment, or else the usual one.
func paths(sockets []string, env, usual string) []string {
	if list := split(sockets...); len(list) > 0 {
		return list
	}
	if list := split(os.Getenv(env)); len(list) > 0 {
		return list
	}
	return []string{usual}
}

func split(lists ...string) (paths []string) {
	for _, list := range lists {
		for path := range strings.SplitSeq(list, ",") {
			if path = strings.TrimSpace(path); path != "" && !slices.Contains(paths, path) {
				paths = append(paths, path)
			}
		}
	}
	return paths
}
