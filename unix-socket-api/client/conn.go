package client

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/unix-socket-api/apierr"
	"google.golang.org/grpc"
)

// maxSockets is how many sockets one client may have.
const maxSockets = 64

// Conn is a connection to the first of some sockets behind which a daemon works. A call that may be made
// elsewhere goes on to the next when a daemon is gone, stops, or says that it cannot serve, within the
// call's own deadline; a daemon that is back is used again. It is the connection of the generated
// clients, and may be used by many goroutines at once.
type Conn struct{ targets []*target }

func dial(sockets []string) (*Conn, error) {
	if len(sockets) > maxSockets {
		return nil, apierr.From(fmt.Errorf("%w: %d sockets: a client may have %d", hierarchy.ErrInvalidArgument, len(sockets), maxSockets))
	}
	c := &Conn{}
	for _, path := range sockets {
		t, err := newTarget(path)
		if err != nil {
			return nil, errors.Join(err, c.Close())
		}
		c.targets = append(c.targets, t)
	}
	return c, nil
}

// Sockets are the paths, in the order in which they are preferred.
func (c *Conn) Sockets() (paths []string) {
	for _, t := range c.targets {
		paths = append(paths, t.path)
	}
	return paths
}

// Close ends it. Calls that are under way fail.
func (c *Conn) Close() error {
	var errs []error
	for _, t := range c.targets {
		errs = append(errs, t.close())
	}
	return errors.Join(errs...)
}

// reconnectPause is how long Connect leaves a daemon alone that has hung up.
const reconnectPause = 50 * time.Millisecond

// Connect returns when there is a connection, with nothing sent. A daemon that takes connections and
// hangs up, since it has too many, is tried until the context ends.
func (c *Conn) Connect(ctx context.Context) error {
	for {
		hungUp := false
		err := c.each(ctx, notSent, func(t *target) error {
			err := t.reach(ctx)
			hungUp = hungUp || errors.Is(err, errNoConnection)
			if err != nil && ctx.Err() == nil {
				err = unreachable(t.path, err)
			}
			return err
		})
		if err == nil || !hungUp || ctx.Err() != nil {
			return err
		}
		select {
		case <-time.After(reconnectPause):
		case <-ctx.Done():
			return err
		}
	}
}

// Invoke makes a call of one message each way.
func (c *Conn) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	return c.each(ctx, elsewhereOf(method), func(t *target) error {
		return t.Invoke(ctx, method, args, reply, opts...)
	})
}

// NewStream opens a stream, which stays with its daemon.
func (c *Conn) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (s grpc.ClientStream, err error) {
	err = c.each(ctx, notSent, func(t *target) (err error) {
		s, err = t.NewStream(ctx, desc, method, opts...)
		return err
	})
	return s, err
}

// rounds is how often each target is tried. In the second it may have been started again, after it was
// met in the middle of its end.
const rounds = 2

// each tries one target after the other, for as long as elsewhere says of the error that another may
// do better.
func (c *Conn) each(ctx context.Context, elsewhere func(error) bool, try func(*target) error) error {
	var (
		tried uint64 // bits
		last  error  // of those to whom something was sent
		gone  []error
	)
	for n := range rounds * len(c.targets) {
		if n%len(c.targets) == 0 {
			tried = 0
		}
		if n == len(c.targets) && last != nil && !errors.Is(last, ErrUnavailable) {
			break // whoever is there has his reasons still
		}
		i := c.pick(tried)
		tried |= 1 << i
		t := c.targets[i]
		err := try(t)
		if err == nil {
			t.worked()
			return nil
		}
		if ctx.Err() != nil || !elsewhere(err) {
			return err
		}
		t.failed()
		if notSent(err) {
			gone = append(gone, err)
		} else {
			last = err
		}
	}
	if last != nil {
		return last
	}
	return unreachables(gone)
}

// pick is the first target that was not tried and is not aside, else the first that was not tried.
func (c *Conn) pick(tried uint64) int {
	left := -1
	for i, t := range c.targets {
		if tried&(1<<i) != 0 {
			continue
		}
		if !t.isAside() {
			return i
		}
		if left < 0 {
			left = i
		}
	}
	return left
}

// unreachables is one error for all sockets behind which there is nobody.
func unreachables(errs []error) error {
	var words []string
	for _, err := range errs {
		if word := err.Error(); !slices.Contains(words, word) {
			words = append(words, word)
		}
	}
	if len(words) == 1 {
		return errs[0]
	}
	e, _ := errors.AsType[*Error](errs[0])
	return apierr.Unreachable(strings.Join(words, "; "), e.Hint)
}
