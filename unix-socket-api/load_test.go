package socketapi_test

import (
	"net"
	"testing"

	"github.com/google/go-cmp/cmp"

	socketapi "github.com/kekd/kekd/unix-socket-api"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

// What callers hold is told while they hold it, and what was refused from then on.
func TestLoad(t *testing.T) {
	h := holding("slow")
	s := startKeys(t, h, func(l *socketapi.Limits) { l.CallsPerUID, l.ConnsPerUID = 1, 1 })
	if diff := cmp.Diff(socketapi.Load{}, s.Load()); diff != "" {
		t.Errorf("before any call (-want +got):\n%s", diff)
	}
	api := kekdv1.NewKeyServiceClient(raw(t, s.path))
	first := make(chan error, 1)
	go func() { first <- second(api.Unwrap(soon(t), &kekdv1.UnwrapRequest{Envelope: []byte("slow")})) }()
	<-h.arrived
	if _, err := api.Unwrap(soon(t), &kekdv1.UnwrapRequest{}); code(err) != "RATE_LIMITED" {
		t.Errorf("a second call: %v", err)
	}
	c, err := net.Dial("unix", s.path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	dead(t, c)
	want := socketapi.Load{Connections: 1, Calls: 1, Operations: 1, RefusedConnections: 1, RefusedCalls: 1}
	if diff := cmp.Diff(want, s.Load()); diff != "" {
		t.Errorf("meanwhile (-want +got):\n%s", diff)
	}
	close(h.release)
	if err := <-first; err != nil {
		t.Error(err)
	}
	want.Calls, want.Operations = 0, 0
	eventually(t, "all is answered", func() bool { return cmp.Equal(want, s.Load()) })
}
