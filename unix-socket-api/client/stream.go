package client

import (
	"context"
	"sync"

	"github.com/kekd/kekd/unix-socket-api/kekdv1"
	"google.golang.org/grpc"
)

// Stream is a pipeline of batches: many may be sent before the first is answered, and answers
// come in the order in which they are done. One goroutine may send while another receives.
type Stream struct {
	s grpc.BidiStreamingClient[kekdv1.BatchRequest, kekdv1.BatchResponse]

	mu   sync.Mutex
	sent map[uint64]int // the sizes of what is not answered yet
}

// OpenStream opens a pipeline to one daemon. It ends with the context, or with [ErrUnavailable] when that
// daemon stops: what is not answered then may be sent again on another.
func (c *Client) OpenStream(ctx context.Context) (*Stream, error) {
	s, err := kekdv1.NewKeyServiceClient(c.conn).Stream(ctx)
	if err != nil {
		return nil, err
	}
	return &Stream{s: s, sent: make(map[uint64]int)}, nil
}

// Send sends a batch under an ID of the caller's, which is not that of another that is still
// unanswered. It blocks while the daemon has enough of this stream in hand. If the stream is
// broken the error is io.EOF, and Recv has the reason.
func (s *Stream) Send(id uint64, ops []Operation) error {
	m, err := messages(ops)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.sent[id] = len(ops)
	s.mu.Unlock()
	return s.s.Send(&kekdv1.BatchRequest{Id: id, Operations: m})
}

// CloseSend says that nothing more will be sent.
func (s *Stream) CloseSend() error { return s.s.CloseSend() }

// Recv receives an answer. An [*Error] in refused is that of one batch, and the stream goes
// on; err ends the stream, with io.EOF after CloseSend and the last answer.
func (s *Stream) Recv() (id uint64, rs []Result, refused, err error) {
	m, err := s.s.Recv()
	if err != nil {
		return 0, nil, nil, err
	}
	s.mu.Lock()
	n := s.sent[m.Id]
	delete(s.sent, m.Id)
	s.mu.Unlock()
	rs, refused = results(m, n)
	return m.Id, rs, refused, nil
}
