package cluster_test

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kekd/kekd/cluster"
	"github.com/kekd/kekd/hierarchy"
)

// This binary is its own child: with the variable set it is a node that proposes until it is killed.
const childDir = "KEKD_TEST_CLUSTER_CHILD"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		if err := child(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// child prints the name of each tenant once its creation is acknowledged.
func child(dir string) error {
	n, err := cluster.Open(config(dir))
	if err != nil {
		return err
	}
	for i := 0; ; i++ {
		name := fmt.Sprintf("p%d-%d", os.Getpid(), i)
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		_, err := n.Propose(ctx, createTenant(name))
		cancel()
		if err != nil {
			return err
		}
		fmt.Println(name)
		if i%20 == 19 {
			if err := n.Snapshot(context.Background()); err != nil {
				return err
			}
		}
	}
}

// Whatever was acknowledged before a kill -9 is there after it, for twenty kills at random moments.
func TestKilledProcess(t *testing.T) {
	t.Parallel()
	dir := initialised(t)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	acknowledged := make(map[string]bool)
	for round := range 20 {
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), childDir+"="+dir)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		if !lines.Scan() { // it runs
			t.Fatalf("round %d: the child said nothing: %v", round, cmd.Wait())
		}
		time.AfterFunc(time.Duration(random.IntN(50))*time.Millisecond, func() { cmd.Process.Kill() })
		acknowledged[lines.Text()] = true
		for lines.Scan() {
			acknowledged[lines.Text()] = true
		}
		if err := cmd.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
			t.Fatalf("round %d: %v", round, err)
		}
	}
	n := open(t, config(dir))
	propose(t, n, tick())
	there := 0
	for tenant := range n.State().Tenants() {
		there++
		delete(acknowledged, tenant.Name)
		if tenant.State != hierarchy.TenantEnabled {
			t.Errorf("tenant %s is %s", tenant.Name, tenant.State)
		}
	}
	if len(acknowledged) > 0 {
		t.Errorf("%d of those acknowledged are gone: %v", len(acknowledged), acknowledged)
	}
	t.Logf("%d commands survived", there)
	if left, _ := filepath.Glob(filepath.Join(dir, "raft", "snapshots", "*.tmp")); len(left) > 0 {
		t.Errorf("unfinished snapshots are left: %v", left)
	}
}
