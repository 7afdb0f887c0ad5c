package socketapi

import (
	"context"
	"log/slog"
	"sync"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/custody"
	"github.com/kekd/kekd/unix-socket-api/apierr"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
	"github.com/kekd/kekd/unix-socket-api/vtcodec"
	"google.golang.org/grpc"
)

// Custody serves data keys. Do never fails as a whole: each response has its own error. The
// requests are not kept after it returns, and the plaintexts in the responses are the
// caller's to wipe.
type Custody interface {
	Do(ctx context.Context, who hierarchy.Principal, reqs []custody.Request, resps []custody.Response)
	// DoInTurn locks turn before its last look, for responses that leave after others. look looks
	// again at a range of them, when it is their turn.
	DoInTurn(ctx context.Context, who hierarchy.Principal, reqs []custody.Request, resps []custody.Response, turn sync.Locker) (look func(ctx context.Context, from, to int))
}

// NewKeyServer makes the server of kekd.sock.
func NewKeyServer(c Custody, l Limits, log *slog.Logger) (*Server, error) {
	s, err := newServer(l, log)
	if err != nil {
		return nil, err
	}
	k := &keyService{Server: s, custody: c}
	s.grpc.RegisterService(k.desc(), nil)
	return s, nil
}

// keyService is kekd.v1.KeyService. Its calls are registered as streams of one message each
// way, which on the wire is what a unary call is: so the handler itself sends its answer, and
// can wipe it and give back its allowance when it has.
type keyService struct {
	*Server
	custody Custody
}

func (k *keyService) desc() *grpc.ServiceDesc {
	return &grpc.ServiceDesc{
		ServiceName: kekdv1.KeyService_ServiceDesc.ServiceName,
		HandlerType: (*any)(nil),
		Metadata:    kekdv1.KeyService_ServiceDesc.Metadata,
		Streams: []grpc.StreamDesc{
			{StreamName: "Wrap", Handler: single(k, "Wrap", wrapRequest, wrapResponse)},
			{StreamName: "Unwrap", Handler: single(k, "Unwrap", unwrapRequest, unwrapResponse)},
			{StreamName: "GenerateDataKey", Handler: single(k, "GenerateDataKey", dataKeyRequest, dataKeyResponse)},
			{StreamName: "Rewrap", Handler: single(k, "Rewrap", rewrapRequest, rewrapResponse)},
			{StreamName: "Batch", Handler: k.batch},
			{StreamName: "Stream", Handler: k.stream, ClientStreams: true, ServerStreams: true},
		},
	}
}

// single handles an operation that comes alone: a batch of one.
func single[Q, A any](k *keyService, method string, read func(*Q, *custody.Request), write func(*custody.Response) *A) grpc.StreamHandler {
	return func(_ any, ss grpc.ServerStream) (err error) {
		defer k.recovered(method, &err)
		c, err := k.open(ss)
		if err != nil {
			return err
		}
		defer c.leave(ss.Context())
		m := new(Q)
		size, err := c.receive(ss, m, checkSingle)
		if err != nil {
			return err
		}
		defer c.drop(size)
		reqs, resps := make([]custody.Request, 1), make([]custody.Response, 1)
		read(m, &reqs[0])
		defer wipe(reqs, resps)
		if err := c.take(ss.Context(), 1); err != nil {
			return err
		}
		defer c.give(1)
		k.do(ss.Context(), c, reqs, resps)
		if err := resps[0].Err; err != nil {
			return k.outward(method, err)
		}
		return ss.SendMsg(&vtcodec.Outgoing{Message: write(&resps[0]), Pool: c})
	}
}

func (k *keyService) batch(_ any, ss grpc.ServerStream) (err error) {
	defer k.recovered("Batch", &err)
	c, err := k.open(ss)
	if err != nil {
		return err
	}
	defer c.leave(ss.Context())
	m := new(kekdv1.BatchRequest)
	size, err := c.receive(ss, m, checkOperations)
	if err != nil {
		return err
	}
	defer c.drop(size)
	defer wipeOperations(m.Operations)
	n := len(m.Operations)
	if err := checkBatch(m.Operations); err != nil {
		return apierr.From(err)
	}
	if err := c.take(ss.Context(), n); err != nil {
		return err
	}
	defer c.give(n)

	reqs, resps := make([]custody.Request, n), make([]custody.Response, n)
	for i, op := range m.Operations {
		operationRequest(op, &reqs[i])
	}
	defer wipe(reqs, resps)
	k.do(ss.Context(), c, reqs, resps)
	return ss.SendMsg(&vtcodec.Outgoing{Message: k.answer(m.Id, reqs, resps), Pool: c})
}

// open begins a call.
func (k *keyService) open(ss grpc.ServerStream) (*conn, error) {
	c, err := connOf(ss.Context())
	if err != nil {
		return nil, apierr.From(err)
	}
	if err := c.enterAlone(); err != nil {
		c.gaveUp(ss.Context())
		return nil, err
	}
	return c, nil
}

// receive reads a call's message, and holds its size. What cannot be decoded is the caller's error,
// not gRPC's.
func (c *conn) receive(ss grpc.ServerStream, m any, check func([]byte) error) (size int, err error) {
	in := vtcodec.Incoming{Message: m, Check: check}
	if err := receiveInto(ss, &in); err != nil {
		return 0, err
	}
	return in.Size, c.hold(in.Size)
}

func receiveInto(ss grpc.ServerStream, in *vtcodec.Incoming) error {
	if err := ss.RecvMsg(in); err != nil {
		return err
	}
	return undecodable(in.Err)
}

// do hands requests of a single call to custody, within the call's deadline.
func (k *keyService) do(ctx context.Context, c *conn, reqs []custody.Request, resps []custody.Response) {
	ctx, cancel := k.deadline(ctx)
	defer cancel()
	k.custody.Do(ctx, c.principal, reqs, resps)
}

func (k *keyService) answer(id uint64, reqs []custody.Request, resps []custody.Response) *kekdv1.BatchResponse {
	m := &kekdv1.BatchResponse{Id: id, Results: make([]*kekdv1.OperationResult, len(resps))}
	for i := range resps {
		if err := resps[i].Err; err != nil {
			m.Results[i] = k.failure(err)
		} else {
			m.Results[i] = result(reqs[i].Op, &resps[i])
		}
	}
	return m
}

func (k *keyService) failure(err error) *kekdv1.OperationResult {
	e := k.refusal("Batch", err)
	return &kekdv1.OperationResult{Result: &kekdv1.OperationResult_Error{Error: e.Proto()}}
}
