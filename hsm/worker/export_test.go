package worker

import (
	"bytes"
	"context"
	"io"
	"net"
	"os/exec"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hsm"
)

// What the tests look at from outside.

var ErrGarbage = errGarbage

const FrameLimit = frameLimit

// ServeOn is Serve on any connection.
func ServeOn(ctx context.Context, conn *net.UnixConn, pin io.ReadCloser, open OpenFunc) error {
	return serve(ctx, conn, pin, open)
}

// Hello is the frame that a worker hears first.
func Hello(role Role) []byte {
	b, at := beginFrame(nil, kindHello)
	return endFrame(appendHello(b, hello{role}), at)
}

// OperationsFrame makes one frame of operations, with IDs from 0 on.
func OperationsFrame(ops []hsm.Operation) []byte {
	b, at := beginFrame(nil, kindOperations)
	for i := range ops {
		b = appendOperation(room(b, operationSize(&ops[i])), uint32(i), &ops[i])
	}
	return endFrame(b, at)
}

// ParseOperations takes the operations of a frame's body apart and puts them together again.
func ParseOperations(body []byte) (ops []hsm.Operation, again []byte, err error) {
	j := &job{}
	if err := j.parse(body); err != nil {
		return nil, nil, err
	}
	for i := range j.ops {
		again = appendOperation(again, j.ids[i], &j.ops[i])
	}
	return j.ops, again, nil
}

// OperationSize is what is reserved for an operation.
func OperationSize(op *hsm.Operation) int { return operationSize(op) }

// RoundResult sends a result to another operation that asked for the same.
func RoundResult(from, to *hsm.Operation) (size int, err error) {
	b := appendResult(nil, 7, from)
	d := decoder{b: b}
	r := d.result()
	if err := d.done(); err != nil {
		return len(b), err
	}
	return len(b), r.give(to)
}

func ResultSize(op *hsm.Operation) int { return resultSize(op) }

// ReadRequest takes a request apart and puts it together again.
func ReadRequest(body []byte) ([]byte, error) {
	r, err := parseRequest(body)
	if err != nil {
		return nil, err
	}
	return appendRequest(nil, r), nil
}

var someOwner = hsm.MarkOwner{Cluster: hierarchy.ClusterID{ID: hierarchy.ID{1}}, Node: hierarchy.NodeID{ID: hierarchy.ID{2}}}

// Requests gives one request of each kind, as it is written.
func Requests() [][]byte {
	id := hierarchy.ObjectID{1}
	var all [][]byte
	for _, r := range []request{
		{verb: verbHealthy, timeout: 5}, {verb: verbForget, keys: []hierarchy.ObjectID{id, id}},
		{verb: verbSign, hash: 5, digest: []byte("digest")}, {verb: verbList}, {verb: verbInfo},
		{verb: verbGenerate, object: id, label: "label"}, {verb: verbSetUsable, object: id, usable: true},
		{verb: verbDestroy, object: id}, {verb: verbMark, owner: someOwner},
		{verb: verbRaiseMark, owner: someOwner, mark: hsm.Mark{Term: 3, LastTerm: 2, LastIndex: 9}}, {verb: verbBegin}, {verb: verbEnd, pair: 3},
		{verb: verbDerive, pair: 3, object: id, label: "label", kdf: hsm.KDFECDHAESCBC, peer: []byte("peer"), info: []byte("info")},
	} {
		all = append(all, appendRequest(nil, &r))
	}
	return all
}

// Listen gives the daemon's side bytes that a worker sends, while it waits for the results of
// operations and for an answer.
func Listen(sent []byte, ops []hsm.Operation) error {
	return ListenRepaired(sent, ops, nil)
}

// ListenRepaired is Listen that tells what was put right.
func ListenRepaired(sent []byte, ops []hsm.Operation, repaired func(string)) error {
	p := &Pool{cfg: Config{Repaired: repaired}.withDefaults(), queue: newQueue(1 << 10), changed: make(chan struct{})}
	w := &worker{p: p, role: RoleServer, cmd: &exec.Cmd{}, opened: make(chan ready, 1), requests: map[uint32]*pending{
		1: {verb: verbList, answer: make(chan answer, 1)}, 2: {verb: verbHealthy},
	}}
	p.seats = []*seat{{role: RoleManager}}
	c := newCall(ops, len(ops))
	p.queue.push(hsm.Lane{}, run{c, 0, int32(len(ops)), 1})
	pieces := p.queue.take(nil, len(ops), false)
	w.depart(pieces, nil)
	return w.listen(newFrameReader(bytes.NewReader(sent)))
}

// Repaired is what the worker of [Answers] has put right.
const Repaired = "restored a.object"

// Answers are frames of each kind that a worker sends.
func Answers(ops []hsm.Operation) [][]byte {
	frame := func(k kind, body []byte) []byte {
		b, at := beginFrame(nil, k)
		return endFrame(append(b, body...), at)
	}
	object := hsm.Object{ID: hierarchy.ObjectID{1}, RawID: []byte("raw"), Label: "label", Fault: hsm.ErrKeyRefused}
	readyBody, err := appendReady(nil, ready{parallel: 1})
	if err != nil {
		panic(err)
	}
	var results []byte
	for i := range ops {
		results = appendResult(results, uint32(i), &ops[i])
	}
	return [][]byte{
		frame(kindReady, readyBody), frame(kindFailed, appendError(nil, hsm.ErrPINLocked)), frame(kindResults, results),
		frame(kindAnswer, appendAnswer(nil, &answer{id: 1, more: true, body: appendObject(nil, &object)})),
		frame(kindAnswer, appendAnswer(nil, &answer{id: 1, err: hsm.ErrDeadline})), frame(kindAnswer, appendAnswer(nil, &answer{id: 2})),
		frame(kindWaits, le.AppendUint32(nil, 1)), frame(kindRepaired, appendText(nil, Repaired)),
	}
}

// RoundObject, RoundInfo and RoundError send things to the other side.
func RoundObject(o hsm.Object) (hsm.Object, error) { return parseObject(appendObject(nil, &o)) }

func RoundInfo(i hsm.Info) (hsm.Info, error) {
	d := decoder{b: appendInfo(nil, &i)}
	got := d.info()
	return got, d.done()
}

func RoundError(err error) error {
	d := decoder{b: appendError(nil, err)}
	return d.error()
}

// ReadFrames gives the bodies of all frames.
func ReadFrames(r io.Reader) (bodies [][]byte, err error) {
	f := newFrameReader(r)
	for {
		k, body, err := f.next()
		if err == io.EOF {
			return bodies, nil
		}
		if err != nil {
			return bodies, err
		}
		bodies = append(bodies, append([]byte{byte(k)}, body...))
	}
}
