package socketapi

import (
	"errors"
	"fmt"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/custody"
	"github.com/kekd/kekd/unix-socket-api/apierr"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

// Messages to requests. A request keeps the message's slices: wiping it wipes the message.

func wrapRequest(m *kekdv1.WrapRequest, r *custody.Request) {
	r.Op, r.Key, r.Plaintext, r.Context, r.Reason = hierarchy.OpWrap, m.Key, m.Plaintext, contextOf(m.Context), m.Reason
}

func unwrapRequest(m *kekdv1.UnwrapRequest, r *custody.Request) {
	r.Op, r.Envelope, r.Context, r.Reason = hierarchy.OpUnwrap, m.Envelope, contextOf(m.Context), m.Reason
}

func dataKeyRequest(m *kekdv1.GenerateDataKeyRequest, r *custody.Request) {
	r.Op, r.Key, r.Context, r.Reason = hierarchy.OpDataKey, m.Key, contextOf(m.Context), m.Reason
	r.Bytes, r.WrappedOnly = int(m.Bytes), m.WrappedOnly
}

func rewrapRequest(m *kekdv1.RewrapRequest, r *custody.Request) {
	r.Op, r.Envelope, r.Context, r.Reason = hierarchy.OpRewrap, m.Envelope, contextOf(m.Context), m.Reason
}

// operationRequest leaves the operation unset if the message has none, which custody refuses.
func operationRequest(m *kekdv1.Operation, r *custody.Request) {
	switch op := m.Op.(type) {
	case *kekdv1.Operation_Wrap:
		wrapRequest(op.Wrap, r)
	case *kekdv1.Operation_Unwrap:
		unwrapRequest(op.Unwrap, r)
	case *kekdv1.Operation_GenerateDataKey:
		dataKeyRequest(op.GenerateDataKey, r)
	case *kekdv1.Operation_Rewrap:
		rewrapRequest(op.Rewrap, r)
	}
}

func contextOf(entries []*kekdv1.ContextEntry) []hierarchy.ContextEntry {
	if len(entries) == 0 {
		return nil
	}
	c := make([]hierarchy.ContextEntry, len(entries))
	for i, e := range entries {
		c[i] = hierarchy.ContextEntry{Key: e.Key, Value: e.Value}
	}
	return c
}

func checkBatch(ops []*kekdv1.Operation) error {
	if len(ops) == 0 || len(ops) > custody.MaxBatch {
		return fmt.Errorf("%w: a batch has 1 to %d operations, got %d", hierarchy.ErrInvalidArgument, custody.MaxBatch, len(ops))
	}
	return nil
}

// Responses to messages. A message keeps the response's slices: wiping the response, once the
// message was encoded, wipes both.

func wrapResponse(r *custody.Response) *kekdv1.WrapResponse {
	return &kekdv1.WrapResponse{Envelope: r.Envelope, Key: r.Key.String(), KeyVersion: r.Version}
}

func unwrapResponse(r *custody.Response) *kekdv1.UnwrapResponse {
	return &kekdv1.UnwrapResponse{Plaintext: r.Plaintext, Key: r.Key.String(), KeyVersion: r.Version, NeedsRewrap: r.NeedsRewrap}
}

func dataKeyResponse(r *custody.Response) *kekdv1.GenerateDataKeyResponse {
	return &kekdv1.GenerateDataKeyResponse{Envelope: r.Envelope, Plaintext: r.Plaintext, Key: r.Key.String(), KeyVersion: r.Version}
}

func rewrapResponse(r *custody.Response) *kekdv1.RewrapResponse {
	return &kekdv1.RewrapResponse{Envelope: r.Envelope, Key: r.Key.String(), KeyVersion: r.Version}
}

// result answers an operation of a batch that succeeded.
func result(op hierarchy.Op, r *custody.Response) *kekdv1.OperationResult {
	switch op {
	case hierarchy.OpWrap:
		return &kekdv1.OperationResult{Result: &kekdv1.OperationResult_Wrap{Wrap: wrapResponse(r)}}
	case hierarchy.OpUnwrap:
		return &kekdv1.OperationResult{Result: &kekdv1.OperationResult_Unwrap{Unwrap: unwrapResponse(r)}}
	case hierarchy.OpDataKey:
		return &kekdv1.OperationResult{Result: &kekdv1.OperationResult_GenerateDataKey{GenerateDataKey: dataKeyResponse(r)}}
	default:
		return &kekdv1.OperationResult{Result: &kekdv1.OperationResult_Rewrap{Rewrap: rewrapResponse(r)}}
	}
}

func wipe(reqs []custody.Request, resps []custody.Response) {
	for i := range reqs {
		clear(reqs[i].Plaintext)
	}
	for i := range resps {
		clear(resps[i].Plaintext)
	}
}

// wipeOperations is for messages that may be refused before they are requests.
func wipeOperations(ops []*kekdv1.Operation) {
	for _, o := range ops {
		clear(o.GetWrap().GetPlaintext())
	}
}

// undecodable is what a message is that is no protobuf of its type, or that is refused unread.
func undecodable(err error) error {
	if err == nil {
		return nil
	}
	if !errors.Is(err, hierarchy.ErrInvalidArgument) {
		err = errWire
	}
	return apierr.From(err)
}
