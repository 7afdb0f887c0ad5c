package socketapi_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/custody"
	"github.com/kekd/kekd/unix-socket-api/client"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

// childCall, in the environment, makes the test binary a caller: "KIND PATH".
const childCall = "KEKD_TEST_CALL"

// child prints its PID and the code that its call ended with.
func child(call string) int {
	kind, path, _ := strings.Cut(call, " ")
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	var err error
	switch kind {
	case "unwrap":
		var c *client.Client
		if c, err = client.Dial(path); err == nil {
			_, err = c.Unwrap(ctx, []byte("x"), client.Options{})
		}
	case "status":
		var c kekdv1.AdminServiceClient
		if c, _, err = client.DialAdmin(path); err == nil {
			_, err = c.GetStatus(ctx, &kekdv1.GetStatusRequest{})
		}
	case "metrics":
		_, err = client.Metrics(ctx, path)
	case "tail":
		var c kekdv1.AdminServiceClient
		if c, _, err = client.DialAdmin(path); err == nil {
			var tail kekdv1.AdminService_TailAuditClient
			if tail, err = c.TailAudit(ctx, &kekdv1.TailAuditRequest{}); err == nil {
				_, err = tail.Recv()
			}
		}
	}
	fmt.Printf("%d %s", os.Getpid(), code(err))
	return 0
}

// callAs makes a call as another user. It returns the caller's PID and the call's code.
func callAs(t *testing.T, kind, path string, uid, gid uint32, groups ...uint32) (pid int32, result string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("only root can call as another user")
	}
	cmd := exec.Command("/proc/self/exe") // the way to the test binary is closed to other users
	cmd.Env = append(os.Environ(), childCall+"="+kind+" "+path, "GORACE=atexit_sleep_ms=0")
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: gid, Groups: groups}}
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("caller: %v: %s", err, errs.String())
	}
	if _, err := fmt.Sscanf(out.String(), "%d %s", &pid, &result); err != nil {
		t.Fatalf("caller said %q: %v", out.String(), err)
	}
	return pid, result
}

func TestCallerIsTheKernels(t *testing.T) {
	seen := make(chan hierarchy.Principal, 1)
	s := startKeys(t, &fakeCustody{before: func(_ context.Context, who hierarchy.Principal, _ []custody.Request) { seen <- who }}, nil)
	pid, result := callAs(t, "unwrap", s.path, 54321, 54322, 54323)
	if result != "OK" {
		t.Fatalf("got %s", result)
	}
	if who := <-seen; who != (hierarchy.Principal{UID: 54321, GID: 54322, PID: pid}) {
		t.Errorf("custody was told %v, the caller was %d", who, pid)
	}
}
