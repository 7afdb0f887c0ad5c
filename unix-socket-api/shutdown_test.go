package socketapi_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/custody"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

// A call that does not come back, whatever becomes of its context, holds up nobody.
func TestShutdownDoesNotWaitForTheDeaf(t *testing.T) {
	var h fakeCustody
	arrived, release := make(chan struct{}), make(chan struct{})
	h.before = func(context.Context, hierarchy.Principal, []custody.Request) {
		close(arrived)
		<-release
	}
	server := startKeys(t, &h, nil)
	defer close(release)
	api := kekdv1.NewKeyServiceClient(raw(t, server.path))
	failed := make(chan error, 1)
	go func() { failed <- second(api.Unwrap(soon(t), &kekdv1.UnwrapRequest{Envelope: []byte("e")})) }()
	<-arrived
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	stopped := make(chan error, 1)
	go func() { stopped <- server.Shutdown(ctx) }()
	select {
	case err := <-stopped:
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got error %v", err)
		}
	case <-soon(t).Done():
		t.Fatal("it waits for the call")
	}
	if err := <-failed; code(err) != "UNAVAILABLE" {
		t.Errorf("the caller was told %v", err)
	}
}
