package client

import (
	"fmt"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/unix-socket-api/apierr"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

// MaxBatch is how many operations one batch, or one message of a stream, may have.
const MaxBatch = 1024

// Options go with every operation.
type Options struct {
	// Context is the encryption context: whatever opens has to give what sealed gave.
	Context map[string]string
	// Reason is for the audit, at most 256 bytes; a policy may require one.
	Reason string
}

// Operation is one operation of a batch.
type Operation struct {
	Op          hierarchy.Op
	Key         string // wrap, data key: TENANT/KEY
	Plaintext   []byte // wrap: 1 to 4,096 bytes
	Envelope    []byte // unwrap, rewrap: binary or text form
	Bytes       uint32 // data key: its length, 16 to 4,096; 0 means 32
	WrappedOnly bool   // data key: do not hand it out
	Options
}

// Result is what became of an operation. What does not belong to it is zero.
type Result struct {
	Envelope    []byte // wrap, data key, rewrap: binary form
	Plaintext   []byte // unwrap, data key: the caller's to wipe
	Key         string // TENANT/KEY
	Version     uint32 // of the key
	NeedsRewrap bool   // unwrap: a newer version is active
	Err         error  // of a batch: this operation's own, an [*Error]
}

func (o *Operation) message() (*kekdv1.Operation, error) {
	context := make([]*kekdv1.ContextEntry, 0, len(o.Context))
	for k, v := range o.Context {
		context = append(context, &kekdv1.ContextEntry{Key: k, Value: v})
	}
	switch o.Op {
	case hierarchy.OpWrap:
		return &kekdv1.Operation{Op: &kekdv1.Operation_Wrap{Wrap: &kekdv1.WrapRequest{Key: o.Key, Plaintext: o.Plaintext, Context: context, Reason: o.Reason}}}, nil
	case hierarchy.OpUnwrap:
		return &kekdv1.Operation{Op: &kekdv1.Operation_Unwrap{Unwrap: &kekdv1.UnwrapRequest{Envelope: o.Envelope, Context: context, Reason: o.Reason}}}, nil
	case hierarchy.OpDataKey:
		return &kekdv1.Operation{Op: &kekdv1.Operation_GenerateDataKey{GenerateDataKey: &kekdv1.GenerateDataKeyRequest{
			Key: o.Key, Bytes: o.Bytes, WrappedOnly: o.WrappedOnly, Context: context, Reason: o.Reason}}}, nil
	case hierarchy.OpRewrap:
		return &kekdv1.Operation{Op: &kekdv1.Operation_Rewrap{Rewrap: &kekdv1.RewrapRequest{Envelope: o.Envelope, Context: context, Reason: o.Reason}}}, nil
	}
	return nil, apierr.From(fmt.Errorf("%w: %s is no single operation", hierarchy.ErrInvalidArgument, o.Op))
}

func messages(ops []Operation) ([]*kekdv1.Operation, error) {
	if len(ops) == 0 || len(ops) > MaxBatch {
		return nil, apierr.From(fmt.Errorf("%w: a batch has 1 to %d operations, got %d", hierarchy.ErrInvalidArgument, MaxBatch, len(ops)))
	}
	m := make([]*kekdv1.Operation, len(ops))
	for i := range ops {
		var err error
		if m[i], err = ops[i].message(); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func resultOf(m *kekdv1.OperationResult) Result {
	switch r := m.GetResult().(type) {
	case *kekdv1.OperationResult_Wrap:
		return Result{Envelope: r.Wrap.Envelope, Key: r.Wrap.Key, Version: r.Wrap.KeyVersion}
	case *kekdv1.OperationResult_Unwrap:
		return Result{Plaintext: r.Unwrap.Plaintext, Key: r.Unwrap.Key, Version: r.Unwrap.KeyVersion, NeedsRewrap: r.Unwrap.NeedsRewrap}
	case *kekdv1.OperationResult_GenerateDataKey:
		return Result{Envelope: r.GenerateDataKey.Envelope, Plaintext: r.GenerateDataKey.Plaintext, Key: r.GenerateDataKey.Key, Version: r.GenerateDataKey.KeyVersion}
	case *kekdv1.OperationResult_Rewrap:
		return Result{Envelope: r.Rewrap.Envelope, Key: r.Rewrap.Key, Version: r.Rewrap.KeyVersion}
	case *kekdv1.OperationResult_Error:
		return Result{Err: apierr.FromProto(r.Error)}
	}
	return Result{Err: errAnswer}
}

// errAnswer is for an answer that no daemon of this version gives.
var errAnswer = apierr.FromProto(&kekdv1.Error{Code: apierr.CodeInternal, Message: "the daemon's answer makes no sense", Hint: "compare the versions of the client and of kekd"})

// results are those of a batch of n.
func results(m *kekdv1.BatchResponse, n int) ([]Result, error) {
	if m.Error != nil {
		return nil, apierr.FromProto(m.Error)
	}
	if len(m.Results) != n {
		return nil, errAnswer
	}
	rs := make([]Result, n)
	for i, r := range m.Results {
		rs[i] = resultOf(r)
	}
	return rs, nil
}
