package socketapi_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/custody"
	socketapi "github.com/kekd/kekd/unix-socket-api"
	"github.com/kekd/kekd/unix-socket-api/client"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

// peer is a node of several, whose daemon can be started again.
type peer struct {
	path   string
	hands  fakeCustody
	served atomic.Int64 // operations
	stop   func(time.Duration)
}

// peers are n nodes that serve. The sockets are in the order in which a client prefers them.
func peers(t *testing.T, n int) (list []*peer, sockets []string) {
	t.Helper()
	dir := socketDir(t)
	for i := range n {
		p := &peer{path: filepath.Join(dir, fmt.Sprint(i))}
		p.hands.before = func(_ context.Context, _ hierarchy.Principal, reqs []custody.Request) { p.served.Add(int64(len(reqs))) }
		p.start(t)
		list, sockets = append(list, p), append(sockets, p.path)
	}
	return list, sockets
}

func (p *peer) start(t *testing.T) {
	t.Helper()
	s, err := socketapi.NewKeyServer(&p.hands, socketapi.DefaultLimits(), slog.New(slog.NewTextHandler(io.Discard, nil)))
	if err != nil {
		t.Fatal(err)
	}
	l, err := socketapi.Listen(p.path, 0o600, -1)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		if err := s.Serve(l); err != nil {
			t.Errorf("Serve: %v", err)
		}
	}()
	var once sync.Once
	p.stop = func(patience time.Duration) {
		once.Do(func() {
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			s.Shutdown(ctx)
			<-served
		})
	}
	t.Cleanup(func() { p.stop(50 * time.Millisecond) })
}

// load calls in every way until it is stopped, and counts.
type load struct {
	calls, failed atomic.Int64
	running       sync.WaitGroup
	end           chan struct{}
}

func startLoad(t *testing.T, sockets []string) *load {
	t.Helper()
	c := dialAll(t, sockets)
	keys, conn, err := client.DialKeys(sockets...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	l := &load{end: make(chan struct{})}
	ways := map[string]func(context.Context, string) (string, error){
		"together": func(ctx context.Context, s string) (string, error) {
			r, err := c.Unwrap(ctx, []byte(s), client.Options{})
			return string(r.Plaintext), err
		},
		"alone": func(ctx context.Context, s string) (string, error) {
			m, err := keys.Unwrap(ctx, &kekdv1.UnwrapRequest{Envelope: []byte(s)})
			return string(m.GetPlaintext()), err
		},
		"batch": func(ctx context.Context, s string) (string, error) {
			rs, err := c.Batch(ctx, []client.Operation{{Op: hierarchy.OpWrap, Key: "acme/orders", Plaintext: []byte("x")}, {Op: hierarchy.OpUnwrap, Envelope: []byte(s)}})
			if err != nil {
				return "", err
			}
			return string(rs[1].Plaintext), errors.Join(rs[0].Err, rs[1].Err)
		},
	}
	for way, call := range ways {
		for worker := range 6 {
			l.running.Go(func() {
				for i := 0; ; i++ {
					select {
					case <-l.end:
						return
					default:
					}
					ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
					want := fmt.Sprintf("%s-%d-%d", way, worker, i)
					got, err := call(ctx, want)
					cancel()
					l.calls.Add(1)
					if err != nil || got != want {
						if l.failed.Add(1) < 5 {
							t.Errorf("%s: %q, %v", want, got, err)
						}
					}
				}
			})
		}
	}
	return l
}

func (l *load) stop() {
	close(l.end)
	l.running.Wait()
}

func dialAll(t testing.TB, sockets []string) *client.Client {
	t.Helper()
	c, err := client.Dial(sockets...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// Two nodes are started again, one after the other and again and again, and no call fails: neither
// where they drain, nor where they break off what is in flight.
func TestRollingRestartFailsNoCall(t *testing.T) {
	for how, patience := range map[string]time.Duration{"in order": 5 * time.Second, "cut off": time.Millisecond} {
		t.Run(how, func(t *testing.T) {
			nodes, sockets := peers(t, 2)
			for _, p := range nodes { // a token takes its time, so that there is always something in flight
				p.hands.after = func([]custody.Request, []custody.Response) { time.Sleep(time.Millisecond) }
			}
			l := startLoad(t, sockets)
			for range 4 {
				for i, p := range nodes {
					other := nodes[1-i]
					p.stop(patience)
					before := other.served.Load()
					eventually(t, "the other serves", func() bool { return other.served.Load() > before+200 })
					p.start(t)
				}
			}
			l.stop()
			if l.failed.Load() > 0 {
				t.Errorf("%d of %d calls failed", l.failed.Load(), l.calls.Load())
			}
			if first := nodes[0].served.Load(); first == 0 {
				t.Error("the first served nothing")
			}
			t.Logf("%d calls", l.calls.Load())
		})
	}
}

// What a node has in hand when it begins to drain it answers; what comes then is the next one's.
func TestDrainingNodeAnswersWhatItHas(t *testing.T) {
	nodes, sockets := peers(t, 2)
	arrived, release := make(chan struct{}, 2), make(chan struct{})
	nodes[0].hands.before = func(_ context.Context, _ hierarchy.Principal, reqs []custody.Request) {
		if string(reqs[0].Envelope) != "next" {
			arrived <- struct{}{}
			<-release
		}
	}
	c := dialAll(t, sockets)
	keys, conn, err := client.DialKeys(sockets...)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	answers := make(chan error, 2)
	go func() { answers <- second(c.Unwrap(soon(t), []byte("together"), client.Options{})) }()
	go func() { answers <- second(keys.Unwrap(soon(t), &kekdv1.UnwrapRequest{Envelope: []byte("alone")})) }()
	<-arrived
	<-arrived
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		nodes[0].stop(10 * time.Second)
	}()
	// It may take some more, until its word that it drains has arrived.
	eventually(t, "the second serves", func() bool {
		if _, err := keys.Unwrap(soon(t), &kekdv1.UnwrapRequest{Envelope: []byte("next")}); err != nil {
			t.Fatal(err)
		}
		before := nodes[1].served.Load()
		if _, err := c.Batch(soon(t), []client.Operation{{Op: hierarchy.OpUnwrap, Envelope: []byte("next")}}); err != nil {
			t.Fatal(err)
		}
		return nodes[1].served.Load() > before
	})
	if len(answers) > 0 {
		t.Error("a call ended before the draining node has answered")
	}
	close(release)
	for range 2 {
		if err := <-answers; err != nil {
			t.Errorf("in flight: %v", err)
		}
	}
	<-stopped
	if _, err := c.Unwrap(soon(t), []byte("later"), client.Options{}); err != nil {
		t.Errorf("the coalescing stream has not moved: %v", err)
	}
}

// refuse has a node refuse every operation for as long as it has a reason.
func (p *peer) refuse(reason *atomic.Pointer[error]) {
	p.hands.after = func(_ []custody.Request, resps []custody.Response) {
		if err := reason.Load(); err != nil {
			for i := range resps {
				resps[i] = custody.Response{Err: *err}
			}
		}
	}
}

// A node that says that it cannot serve is left for one that can; one that says no is not.
func TestWhatIsAskedElsewhere(t *testing.T) {
	for _, test := range []struct {
		err       error
		elsewhere bool
	}{
		{hierarchy.ErrStale, true},
		{hierarchy.ErrHSMUnavailable, true},
		{hierarchy.ErrAuditUnavailable, true},
		{hierarchy.ErrTenantDisabled, false},
		{hierarchy.ErrPermissionDenied, false},
		{hierarchy.ErrRateLimited, false},
		{hierarchy.ErrFailedPrecondition, false},
		{errors.New("a bug"), false},
	} {
		t.Run(test.err.Error(), func(t *testing.T) {
			nodes, sockets := peers(t, 2)
			var reason atomic.Pointer[error]
			reason.Store(&test.err)
			nodes[0].refuse(&reason)
			c := dialAll(t, sockets)
			keys, conn, err := client.DialKeys(sockets...)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_, one := c.Unwrap(soon(t), []byte("x"), client.Options{})
			_, two := keys.Unwrap(soon(t), &kekdv1.UnwrapRequest{Envelope: []byte("x")})
			rs, three := c.Batch(soon(t), []client.Operation{{Op: hierarchy.OpUnwrap, Envelope: []byte("a")}, {Op: hierarchy.OpUnwrap, Envelope: []byte("b")}})
			if three == nil {
				three = errors.Join(rs[0].Err, rs[1].Err)
			}
			for i, err := range []error{one, two, three} {
				if (err == nil) != test.elsewhere {
					t.Errorf("call %d: %v", i, err)
				}
			}
			if asked := nodes[1].served.Load() > 0; asked != test.elsewhere {
				t.Errorf("the second was asked: %v", asked)
			}
		})
	}
}

// Of a batch only that is asked again which the first could not serve.
func TestBatchIsAskedElsewhereInPart(t *testing.T) {
	nodes, sockets := peers(t, 2)
	nodes[0].hands.after = func(reqs []custody.Request, resps []custody.Response) {
		for i := range reqs {
			if string(reqs[i].Envelope) == "b" {
				resps[i] = custody.Response{Err: hierarchy.ErrStale}
			}
		}
	}
	var ops []client.Operation
	for _, envelope := range []string{"a", "b", "c"} {
		ops = append(ops, client.Operation{Op: hierarchy.OpUnwrap, Envelope: []byte(envelope)})
	}
	rs, err := dialAll(t, sockets).Batch(soon(t), ops)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range rs {
		got = append(got, fmt.Sprint(string(r.Plaintext), r.Err))
	}
	if diff := cmp.Diff([]string{"a<nil>", "b<nil>", "c<nil>"}, got); diff != "" {
		t.Error(diff)
	}
	if n := nodes[1].served.Load(); n != 1 {
		t.Errorf("the second was asked for %d", n)
	}
	// Where nobody can serve the rest, what was served is there.
	nodes[1].hands.after = nodes[0].hands.after
	rs, err = dialAll(t, sockets).Batch(soon(t), ops)
	if err != nil || rs[0].Err != nil || !errors.Is(rs[1].Err, hierarchy.ErrStale) || string(rs[2].Plaintext) != "c" {
		t.Errorf("got %v, %v", rs, err)
	}
}

// When all are stale that is the answer, and not that another cannot be reached; and each is asked once.
func TestAllAreStale(t *testing.T) {
	nodes, sockets := peers(t, 3)
	stale := hierarchy.ErrStale
	var reason atomic.Pointer[error]
	reason.Store(&stale)
	nodes[0].refuse(&reason)
	nodes[1].refuse(&reason)
	nodes[2].stop(time.Second)
	c := dialAll(t, sockets)
	if _, err := c.Unwrap(soon(t), []byte("x"), client.Options{}); !errors.Is(err, hierarchy.ErrStale) {
		t.Errorf("got %v", err)
	}
	if a, b := nodes[0].served.Load(), nodes[1].served.Load(); a != 1 || b != 1 {
		t.Errorf("asked %d and %d times", a, b)
	}
	// One that serves again is found, although it was put aside.
	reason.Store(nil)
	if _, err := c.Unwrap(soon(t), []byte("x"), client.Options{}); err != nil {
		t.Errorf("it serves again: %v", err)
	}
}

// The first is used again when it is back.
func TestFirstIsPreferred(t *testing.T) {
	nodes, sockets := peers(t, 2)
	c := dialAll(t, sockets)
	call := func() {
		t.Helper()
		if _, err := c.Unwrap(soon(t), []byte("x"), client.Options{}); err != nil {
			t.Fatal(err)
		}
	}
	call()
	nodes[0].stop(time.Second)
	call()
	if nodes[0].served.Load() != 1 || nodes[1].served.Load() != 1 {
		t.Errorf("served %d and %d", nodes[0].served.Load(), nodes[1].served.Load())
	}
	nodes[0].start(t)
	eventually(t, "the first serves again", func() bool {
		call()
		return nodes[0].served.Load() > 1
	})
}

func TestNobodyIsThere(t *testing.T) {
	dir := socketDir(t)
	t.Setenv("KEKD_SOCKET", dir+"/a, "+dir+"/b")
	c := dialAll(t, nil)
	_, err := c.Unwrap(soon(t), []byte("x"), client.Options{})
	for _, part := range []string{dir + "/a", dir + "/b", "no such file"} {
		if !errors.Is(err, client.ErrUnavailable) || !strings.Contains(err.Error(), part) {
			t.Errorf("%q is not in: %v", part, err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := c.Unwrap(ctx, []byte("x"), client.Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("given up: %v", err)
	}
}

// A change is tried at another node where it is certain that nothing was done, and else not.
func TestChangesAreNotMadeTwice(t *testing.T) {
	for _, test := range []struct {
		name      string
		fault     func(*node, *running) // of the first
		code      string
		elsewhere bool
	}{
		{"no leader", func(n *node, _ *running) {
			n.refuse = fmt.Errorf("%w: it does not lead the cluster", hierarchy.ErrStale)
		}, "OK", true},
		{"nobody is there", func(_ *node, s *running) { s.Shutdown(context.Background()) }, "OK", true},
		{"an unknown outcome", func(n *node, _ *running) {
			n.proposeErr = func(context.Context, *commandpb.Command) error { return hierarchy.ErrOutcomeUnknown }
		}, "OUTCOME_UNKNOWN", false},
		{"a broken connection", func(n *node, s *running) {
			n.proposeErr = func(ctx context.Context, _ *commandpb.Command) error {
				soon, cancel := context.WithTimeout(context.Background(), time.Millisecond)
				defer cancel()
				s.Shutdown(soon)
				<-ctx.Done()
				return nil
			}
		}, "UNAVAILABLE", false},
		{"no journal", func(n *node, _ *running) { n.auditErr = func(socketapi.AdminRecord) error { return errDisk } }, "AUDIT_UNAVAILABLE", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			one, two := newNode(t), newNode(t)
			_, _, first := adminOf(t, one, socketapi.Admins{GID: -1})
			_, _, last := adminOf(t, two, socketapi.Admins{GID: -1})
			test.fault(one, first)
			api, conn, err := client.DialAdmin(first.path + "," + last.path)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			id := hierarchy.NewID()
			_, err = api.CreateTenant(soon(t), &kekdv1.CreateTenantRequest{Name: "acme", IdempotencyId: id[:]})
			if code(err) != test.code {
				t.Errorf("got %v", err)
			}
			if made := len(two.commands) > 0; made != test.elsewhere {
				t.Errorf("proposed elsewhere: %v", made)
			}
			for _, c := range two.commands {
				if diff := cmp.Diff(id[:], c.Id); diff != "" {
					t.Errorf("another idempotency ID: %s", diff)
				}
			}
			if test.name == "a broken connection" {
				// What only reads is asked of the other.
				if _, err := api.GetStatus(soon(t), &kekdv1.GetStatusRequest{}); err != nil {
					t.Errorf("a read: %v", err)
				}
			}
		})
	}
}
