// Command cutoff unwraps the envelope on its standard input over and over, until it is refused,
// and prints when that was: how a service sees that its tenant is disabled.
//
//	cutoff app=files < acme.envelope
//
// prints the time of the last answer and of the first refusal, in nanoseconds since 1970, how
// many unwraps there were, and the refusal's code.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"time"

	"github.com/kekd/kekd/unix-socket-api/client"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "cutoff: %v\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) != 1 {
		return errors.New("usage: cutoff NAME=VALUE < ENVELOPE")
	}
	envelope, err := io.ReadAll(io.LimitReader(os.Stdin, 64<<10))
	if err != nil {
		return err
	}
	kekd, err := client.Dial()
	if err != nil {
		return err
	}
	defer kekd.Close()
	name, value, _ := strings.Cut(args[0], "=")
	options := client.Options{Context: map[string]string{name: value}}
	var last time.Time
	for count := 0; ; count++ {
		dataKey, err := kekd.Unwrap(ctx, envelope, options)
		if refused, ok := errors.AsType[*client.Error](err); ok {
			fmt.Println(last.UnixNano(), time.Now().UnixNano(), count, refused.Code)
			return nil
		}
		if err != nil {
			return err
		}
		clear(dataKey.Plaintext)
		last = time.Now()
	}
}
