package main

import (
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/kekd/kekd/unix-socket-api/client"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

// flooder is the uid of the tenant's service that floods: nobody's.
const flooder = 65534

// floodTenant makes a tenant for a service with another uid, and an envelope of it.
func (d *daemon) floodTenant(ctx context.Context) (envelope []byte, err error) {
	admin, done, err := d.node.Admin()
	if err != nil {
		return nil, err
	}
	defer done()
	uid := uint32(flooder)
	if _, err = admin.CreateTenant(ctx, &kekdv1.CreateTenantRequest{Name: "flood"}); err == nil {
		_, err = admin.CreateKey(ctx, &kekdv1.CreateKeyRequest{Key: "flood/orders"})
	}
	if err == nil {
		_, err = admin.CreateService(ctx, &kekdv1.CreateServiceRequest{Name: "flood", Uid: &uid})
	}
	for _, service := range []string{"flood", "bench"} {
		if err == nil {
			_, err = admin.AllowPolicy(ctx, &kekdv1.AllowPolicyRequest{Rule: &kekdv1.Rule{Service: service, Pattern: "flood/*", Ops: []string{"unwrap", "datakey"}}})
		}
	}
	if err != nil {
		return nil, err
	}
	made, err := d.api.GenerateDataKey(ctx, &kekdv1.GenerateDataKeyRequest{Key: "flood/orders"})
	if err != nil {
		return nil, err
	}
	return made.Envelope, nil
}

// victim is one caller while another tenant's service, of another uid, calls as fast as it can.
func (d *daemon) victim(name string, flood string) load {
	return load{name, false, 1, 1, func(ctx context.Context) (func() error, error) {
		if flood != "" {
			cmd := exec.CommandContext(ctx, "/proc/self/exe", "-flood", flood, "-socket", d.node.Socket)
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: flooder, Gid: flooder}, Pdeathsig: syscall.SIGKILL}
			cmd.Stdin = strings.NewReader(base64.StdEncoding.EncodeToString(d.flood))
			cmd.Stderr = os.Stderr
			if err := cmd.Start(); err != nil {
				return nil, err
			}
			go func() { _ = cmd.Wait() }() // it ends with ctx
			time.Sleep(time.Second)
		}
		return func() error {
			_, err := d.api.Unwrap(ctx, &kekdv1.UnwrapRequest{Envelope: d.envelope, Context: d.context})
			return err
		}, nil
	}}
}

// runFlood is what the flooding process does, until it is killed.
func runFlood(ctx context.Context, kind, socket string) error {
	text, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	envelope, err := base64.StdEncoding.DecodeString(string(text))
	if err != nil {
		return err
	}
	keys, closer, err := client.DialKeys(socket)
	if err != nil {
		return err
	}
	defer closer.Close()
	callers, call := 64, func() error {
		_, err := keys.Unwrap(ctx, &kekdv1.UnwrapRequest{Envelope: envelope})
		return err
	}
	if kind == "batches" {
		d := &daemon{envelope: envelope}
		req := &kekdv1.BatchRequest{Operations: d.unwraps(1024)}
		callers, call = 8, func() error {
			_, err := keys.Batch(ctx, req)
			return err
		}
	} else if kind != "calls" {
		return fmt.Errorf("no flood of %q", kind)
	}
	if err := call(); err != nil {
		return err
	}
	var wg sync.WaitGroup
	for range callers {
		wg.Go(func() {
			for ctx.Err() == nil {
				if call() != nil {
					time.Sleep(time.Millisecond) // over a limit
				}
			}
		})
	}
	wg.Wait()
	return ctx.Err()
}
