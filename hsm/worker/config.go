package worker

import (
	"log/slog"
	"os/exec"
	"time"
)

// Config says how workers are started and watched. The zero value of each number is its default.
type Config struct {
	// Command gives the command of one worker: a program that calls [Serve]. The pool adds
	// descriptors and process attributes. Without a Stderr the worker has the daemon's.
	Command func() *exec.Cmd

	// PIN reads the token's user PIN, anew for each start, so that the daemon need not keep
	// it. It goes to the worker through a pipe, and what PIN returned is wiped.
	PIN func() ([]byte, error)

	// Log is told about workers that begin and end. Nil: nobody is.
	Log *slog.Logger

	// Repaired is told what a worker has put right of where its token is kept, in the words of
	// what it opened the token with, of 4 KiB at most. It is called while nothing else is read
	// from that worker, so it must not wait. Nil: nobody is told.
	Repaired func(text string)

	// Workers is how many processes serve, the manager included. The default is two for a
	// token that runs one operation at a time where there are two processors (SoftHSM has one
	// lock for each process), and one otherwise.
	Workers int

	// LaneLimit is how many operations of one lane may wait; more end with hsm.ErrBusy. The
	// default is 16384: of 70,000 a second, a quarter of one.
	LaneLimit int

	// HangTimeout is how long a worker with something to do may be silent, and how long an operation
	// may take in it, before it is killed. 5 s. Operations in the manager may take ChangeTimeout
	// more while it changes objects. Each is asked for its health once a second, so an idle one is
	// found out, too.
	HangTimeout time.Duration
	// ForgetTimeout is how long a worker may take to forget keys before it is killed. 2 s.
	ForgetTimeout time.Duration
	// ChangeTimeout is how long the manager may take for one request. 60 s: a listing of 16,000
	// objects over a network takes half of that.
	ChangeTimeout time.Duration
	// StartTimeout is how long a worker may take to open the token. 60 s.
	StartTimeout time.Duration
	// Patience is how long operations wait without any worker before a start that failed ends
	// them. 2 s.
	Patience time.Duration
	// Steady is how long a worker has to serve before the wait after its end is short again. 5 s.
	Steady time.Duration
	// BackOff is the longest wait between two starts. 2 s.
	BackOff time.Duration
}

func (c Config) withDefaults() Config {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Repaired == nil {
		c.Repaired = func(string) {}
	}
	if c.LaneLimit <= 0 {
		c.LaneLimit = 1 << 14
	}
	for d, standard := range map[*time.Duration]time.Duration{
		&c.HangTimeout: 5 * time.Second, &c.ForgetTimeout: 2 * time.Second, &c.ChangeTimeout: time.Minute,
		&c.StartTimeout: time.Minute, &c.Patience: 2 * time.Second, &c.Steady: 5 * time.Second, &c.BackOff: 2 * time.Second,
	} {
		if *d <= 0 {
			*d = standard
		}
	}
	return c
}
