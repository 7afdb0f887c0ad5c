package client_test

import (
	"bytes"
	"context"
	"io"
	"testing"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/unix-socket-api/client"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
	"google.golang.org/grpc"
)

// wire is a daemon that is behind no socket: a test sees each message before and after it is sent.
type wire struct {
	kekdv1.KeyServiceClient
	grpc.ClientStream
	send    func(*kekdv1.BatchRequest) error
	answers chan *kekdv1.BatchResponse
}

func (w *wire) Stream(ctx context.Context, _ ...grpc.CallOption) (grpc.BidiStreamingClient[kekdv1.BatchRequest, kekdv1.BatchResponse], error) {
	go func() {
		<-ctx.Done()
		close(w.answers)
	}()
	return w, nil
}

func (w *wire) Send(m *kekdv1.BatchRequest) error { return w.send(m) }

func (w *wire) Recv() (*kekdv1.BatchResponse, error) {
	if m, ok := <-w.answers; ok {
		return m, nil
	}
	return nil, io.EOF
}

func wrapped(id uint64) *kekdv1.BatchResponse {
	return &kekdv1.BatchResponse{Id: id, Results: []*kekdv1.OperationResult{{Result: &kekdv1.OperationResult_Wrap{Wrap: &kekdv1.WrapResponse{}}}}}
}

// TestBuffersAreTheCallersAgain: what a caller gave is not looked at any more once Do has returned,
// be it before his operation is sent, and the copy of a data key lasts no longer than it is needed.
func TestBuffersAreTheCallersAgain(t *testing.T) {
	for _, c := range []struct {
		op   hierarchy.Op
		sent func(*kekdv1.BatchRequest) []byte
		kept bool // it is no secret
	}{
		{hierarchy.OpWrap, func(m *kekdv1.BatchRequest) []byte { return m.Operations[0].GetWrap().GetPlaintext() }, false},
		{hierarchy.OpUnwrap, func(m *kekdv1.BatchRequest) []byte { return m.Operations[0].GetUnwrap().GetEnvelope() }, true},
		{hierarchy.OpRewrap, func(m *kekdv1.BatchRequest) []byte { return m.Operations[0].GetRewrap().GetEnvelope() }, true},
	} {
		t.Run(c.op.String(), func(t *testing.T) {
			given := []byte("a data key, or what seals it")
			want := bytes.Clone(given)
			operation := client.Operation{Op: c.op, Key: "acme/orders", Plaintext: given, Envelope: given}
			var copied []byte
			sending, gone := make(chan struct{}), make(chan struct{})
			w := &wire{answers: make(chan *kekdv1.BatchResponse)}
			w.send = func(m *kekdv1.BatchRequest) error {
				if copied != nil { // the next one: the first is over
					if wiped := bytes.Equal(copied, make([]byte, len(copied))); wiped == c.kept {
						t.Errorf("afterwards the copy is %q", copied)
					}
					w.answers <- wrapped(m.Id)
					return nil
				}
				copied = c.sent(m)
				close(sending)
				<-gone
				w.answers <- wrapped(m.Id) // before it is sent: that wipes nothing under the sender
				w.answers <- &kekdv1.BatchResponse{Id: 99}
				if got := c.sent(m); !bytes.Equal(got, want) {
					t.Errorf("sent %q, want what the caller gave", got)
				}
				return nil
			}
			k := client.Over(w)
			defer k.End()
			ctx, cancel := context.WithCancel(soon(t))
			go func() {
				<-sending
				cancel()
			}()
			if _, err := k.Do(ctx, operation); code(err) != "CANCELLED" {
				t.Fatalf("%s (%v), want that the caller has gone", code(err), err)
			}
			clear(given)
			close(gone)
			if _, err := k.Do(soon(t), operation); err != nil {
				t.Fatal(err)
			}
		})
	}
}
