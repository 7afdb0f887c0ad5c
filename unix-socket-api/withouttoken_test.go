package socketapi_test

import (
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/kekd/kekd/hierarchy"
	socketapi "github.com/kekd/kekd/unix-socket-api"
	"github.com/kekd/kekd/unix-socket-api/client"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

// Every call of kekd.sock on a node without a token has the same answer: who it is, and whom to ask.
func TestANodeWithoutAToken(t *testing.T) {
	n := newNode(t)
	n.join(t, farNode, "far", farRegion, "site-w", hierarchy.RoleWitness)
	s := startKeys(t, socketapi.WithoutToken{Self: hierarchy.NodeID{ID: farNode}, State: n.State}, nil)
	c := dial(t, s.path)
	keys := kekdv1.NewKeyServiceClient(raw(t, s.path))
	var errs []error
	add := func(err error) { errs = append(errs, client.FromError(err)) }
	add(second(c.Unwrap(soon(t), []byte("x"), client.Options{})))
	add(second(keys.Wrap(soon(t), &kekdv1.WrapRequest{Key: "acme/orders", Plaintext: []byte("x")})))
	add(second(keys.Unwrap(soon(t), &kekdv1.UnwrapRequest{Envelope: []byte("x")})))
	add(second(keys.GenerateDataKey(soon(t), &kekdv1.GenerateDataKeyRequest{Key: "acme/orders"})))
	add(second(keys.Rewrap(soon(t), &kekdv1.RewrapRequest{Envelope: []byte("x")})))
	rs, err := c.Batch(soon(t), []client.Operation{{Op: hierarchy.OpUnwrap}, {Op: hierarchy.OpDataKey}})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rs {
		add(r.Err)
	}
	stream, err := c.OpenStream(soon(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(1, []client.Operation{{Op: hierarchy.OpUnwrap}}); err != nil {
		t.Fatal(err)
	}
	if _, rs, _, err = stream.Recv(); err != nil {
		t.Fatal(err)
	}
	add(rs[0].Err)
	stream.CloseSend()
	if _, _, _, err := stream.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("the stream ended with %v", err)
	}
	for i, err := range errs {
		if code(err) != "FAILED_PRECONDITION" || !strings.Contains(err.Error(), "node far has no HSM") || !strings.Contains(err.Error(), "region eu-west") || strings.Contains(err.Error(), "site-w") {
			t.Errorf("call %d: %v", i, err)
		}
	}
}
