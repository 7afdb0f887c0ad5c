package socketapi

import (
	"fmt"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/custody"
	"google.golang.org/protobuf/encoding/protowire"
)

// What a message may be before it is decoded. Two bytes on the wire, an empty context entry, become
// a hundred in memory: so fields are counted first, which takes no memory.
const (
	// maxSingle is the size of an operation that comes alone, in bytes: twice what the largest has,
	// an envelope of 16 KiB as text or a data key of 4 KiB, and 16 context entries of 1,152 bytes.
	maxSingle = 64 << 10
	// maxFields is how many fields an operation may have: a context of 16 entries and four more are
	// what is known, the others are for callers who know of more, or who are told what is too much.
	maxFields = 32
	// maxTop bounds the fields of a batch's own. Who is over the limit of operations, but not by far, is
	// still told so under the batch's ID.
	maxTop = 2 * custody.MaxBatch
)

const operationsField = 2 // of a BatchRequest

// checkSingle looks at the message of a call for one operation.
func checkSingle(wire []byte) error {
	if len(wire) > maxSingle {
		return fmt.Errorf("%w: a call for one operation has at most %d bytes, got %d", hierarchy.ErrInvalidArgument, maxSingle, len(wire))
	}
	_, err := countFields(wire, maxFields)
	return err
}

// checkOperations looks at a batch, alone or on a stream.
func checkOperations(wire []byte) error {
	for n := 0; len(wire) > 0; n++ {
		f, err := nextField(&wire)
		if err != nil {
			return err
		}
		if n == maxTop {
			return fmt.Errorf("%w: a batch has 1 to %d operations", hierarchy.ErrInvalidArgument, custody.MaxBatch)
		}
		if f.number == operationsField {
			if err := checkOperation(f.value); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkOperation counts the fields of what an operation holds together: decoding merges those that
// are of the same kind.
func checkOperation(wire []byte) error {
	for left := maxFields; len(wire) > 0; {
		f, err := nextField(&wire)
		if err != nil {
			return err
		}
		n, err := countFields(f.value, left)
		if err != nil {
			return err
		}
		if left -= n + 1; left < 0 {
			return errFields()
		}
	}
	return nil
}

// countFields is an error if there are more than most.
func countFields(wire []byte, most int) (n int, err error) {
	for ; len(wire) > 0; n++ {
		if n >= most {
			return n, errFields()
		}
		if _, err := nextField(&wire); err != nil {
			return n, err
		}
	}
	return n, nil
}

func errFields() error {
	return fmt.Errorf("%w: an operation has at most %d fields, its context entries among them", hierarchy.ErrInvalidArgument, maxFields)
}

type field struct {
	number protowire.Number
	value  []byte // nil unless it is of bytes
}

// nextField takes a field off wire.
func nextField(wire *[]byte) (f field, err error) {
	number, kind, n := protowire.ConsumeTag(*wire)
	if n < 0 {
		return f, errWire
	}
	rest := (*wire)[n:]
	if n = protowire.ConsumeFieldValue(number, kind, rest); n < 0 {
		return f, errWire
	}
	if kind == protowire.BytesType {
		f.value, _ = protowire.ConsumeBytes(rest)
	}
	f.number = number
	*wire = rest[n:]
	return f, nil
}

var errWire = fmt.Errorf("%w: the message cannot be decoded", hierarchy.ErrInvalidArgument)
