package worker_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"

	"github.com/kekd/kekd/hsm/hsmtest"
	"github.com/kekd/kekd/hsm/worker"
)

// daemonMain is a daemon with two workers: it tells their PIDs and waits until its input ends.
func daemonMain(config string) error {
	var c workerConfig
	if err := json.Unmarshal([]byte(config), &c); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	os.Unsetenv(asDaemon)
	p, err := worker.Open(ctx, worker.Config{
		Workers: 2, PIN: pinOf(hsmtest.UserPIN),
		Command: func() *exec.Cmd {
			cmd := exec.Command("/proc/self/exe")
			cmd.Env = append(os.Environ(), asWorker+"="+config)
			return cmd
		},
	})
	if err != nil {
		return err
	}
	for _, w := range p.Workers() {
		fmt.Println(w.PID)
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
	return p.Close(ctx)
}
