// Command files seals and opens files with data keys of kekd: envelope encryption with the Go
// client. The data key is made in the token, used here for one file, and wiped; what is kept
// beside the file's contents is its envelope.
//
//	files seal acme/orders app=billing report.pdf report.pdf.sealed
//	files open             app=billing report.pdf.sealed report.pdf
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"strings"

	"github.com/kekd/kekd/unix-socket-api/client"
)

const usage = `usage: files seal TENANT/KEY NAME=VALUE IN OUT
       files open NAME=VALUE IN OUT
NAME=VALUE is the encryption context; the daemon's socket is $KEKD_SOCKET`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "files: %v\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	kekd, err := client.Dial()
	if err != nil {
		return err
	}
	defer kekd.Close()
	switch {
	case len(args) == 5 && args[0] == "seal":
		return seal(ctx, kekd, args[1], args[2], args[3], args[4])
	case len(args) == 4 && args[0] == "open":
		return open(ctx, kekd, args[1], args[2], args[3])
	}
	return fmt.Errorf("%s", usage)
}

func seal(ctx context.Context, kekd *client.Client, key, entry, inPath, outPath string) error {
	in, err := os.Open(inPath)
	if err != nil {
		return err
	}
	defer in.Close()
	dataKey, err := kekd.GenerateDataKey(ctx, key, 32, options(entry))
	if err != nil {
		return err
	}
	defer clear(dataKey.Plaintext)
	return create(outPath, func(out *os.File) error {
		return sealStream(out, in, dataKey.Envelope, dataKey.Plaintext)
	})
}

func open(ctx context.Context, kekd *client.Client, entry, inPath, outPath string) error {
	in, err := os.Open(inPath)
	if err != nil {
		return err
	}
	defer in.Close()
	envelope, err := readEnvelope(in)
	if err != nil {
		return fmt.Errorf("%s: %w", inPath, err)
	}
	dataKey, err := kekd.Unwrap(ctx, envelope, options(entry))
	if err != nil {
		return err
	}
	defer clear(dataKey.Plaintext)
	return create(outPath, func(out *os.File) error {
		return openStream(out, in, dataKey.Plaintext)
	})
}

func options(entry string) client.Options {
	name, value, _ := strings.Cut(entry, "=")
	return client.Options{Context: map[string]string{name: value}}
}

// create writes a file that is there whole or not at all: a plaintext that turns out to be
// altered half-way must not be taken for the file.
func create(path string, write func(*os.File) error) error {
	tmp := path + ".tmp"
	out, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer os.Remove(tmp)
	err = write(out)
	if e := out.Close(); err == nil {
		err = e
	}
	if err != nil {
		return err
	}
	return os.Rename(tmp, path)
}
