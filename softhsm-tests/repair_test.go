package softhsmtests

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

// The manager is killed in the middle of a change, while the daemon lives: what its successor puts
// right is in the journal, as it is in the log.
func TestRepairsOfWorkersAreRecorded(t *testing.T) {
	t.Parallel()
	n := initialised(t)
	n.HSM = "workers = 1\n" // the manager
	d := n.serve()
	setUp(t, n.Node, "acme")
	for round := 0; len(repairsRecorded(t, n)) == 0; round++ {
		if round == 30 {
			t.Fatal("killed 30 times in the middle of a change, and nothing was put right")
		}
		killed := killWhenAnObjectIsMade(t, n, d)
		_, err := admin(t, n.Node).CreateKey(within(t, 30*time.Second), &kekdv1.CreateKeyRequest{Key: fmt.Sprintf("acme/k%d", round)})
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		<-killed
	}
	if !d.running() {
		t.Fatal("the daemon has ended")
	}
	eventually(t, 5*time.Second, "what the log says is in the journal", func() bool {
		return cmp.Equal(repairsLogged(d), repairsRecorded(t, n))
	})
	verifyAudit(t, n)
	d.stop()
}

// A key's file and its copy are torn while the daemon lives. That is told of this key, in the
// journal too, and of no other.
func TestALostKeyIsRecorded(t *testing.T) {
	t.Parallel()
	n := initialised(t)
	n.HSM = "workers = 1\n"
	d := n.serve()
	setUp(t, n.Node, "acme")
	before := filesOfObjects(t, n)
	if _, err := admin(t, n.Node).CreateKey(within(t, 20*time.Second), &kekdv1.CreateKeyRequest{Key: "acme/torn"}); err != nil {
		t.Fatal(err)
	}
	made := slices.DeleteFunc(filesOfObjects(t, n), func(f string) bool { return slices.Contains(before, f) })
	if len(made) != 1 {
		t.Fatalf("files that were made: %q", made)
	}
	for place, size := range map[string]int64{"tokens": 10, "shadow": 20} { // what is alike, to its time, is not looked into
		if err := os.Truncate(filepath.Join(n.SoftHSM, place, made[0]), size); err != nil {
			t.Fatal(err)
		}
	}
	killWorkers(t, d)
	want := []string{"lost " + made[0], "quarantined " + made[0]}
	eventually(t, 10*time.Second, "that the key is lost is in the journal", func() bool { return cmp.Equal(want, repairsRecorded(t, n)) })
	sealAndOpen(t, n, "acme/orders")
	d.stop()
}

// A repair at the start has to wait for whoever has the directory open; what the workers put right
// instead is recorded.
func TestRepairsBesideOthersAreRecorded(t *testing.T) {
	t.Parallel()
	n := initialised(t)
	d := n.serve()
	setUp(t, n.Node, "acme")
	d.stop()
	files := filesOfObjects(t, n)
	torn := files[slices.IndexFunc(files, func(f string) bool { return !strings.HasSuffix(f, "/token.object") })]
	if err := os.Truncate(filepath.Join(n.SoftHSM, "tokens", torn), 10); err != nil {
		t.Fatal(err)
	}
	lock, err := os.OpenFile(filepath.Join(n.SoftHSM, "lock"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_SH|unix.LOCK_NB); err != nil {
		t.Fatal(err)
	}
	d = n.serve()
	eventually(t, 5*time.Second, "the repair is in the journal", func() bool {
		return cmp.Equal([]string{"restored " + torn}, repairsRecorded(t, n))
	})
	d.stop()
}

// repairsRecorded is what was put right as the journal tells it, a file each: "restored T/F".
func repairsRecorded(t *testing.T, n *node) (repairs []string) {
	t.Helper()
	for _, e := range journalOf(t, n) {
		if e.Kind == "token-repair" {
			repairs = append(repairs, perFile(e.Detail)...)
		}
	}
	slices.Sort(repairs)
	return repairs
}

// repairsLogged is the same as the log tells it.
func repairsLogged(d *daemon) (repairs []string) {
	for _, m := range regexp.MustCompile(`the token directory was put right.* report="([^"]*)"`).FindAllStringSubmatch(d.says(), -1) {
		for report := range strings.SplitSeq(m[1], "; ") {
			repairs = append(repairs, perFile(report)...)
		}
	}
	slices.Sort(repairs)
	return repairs
}

func perFile(text string) (repairs []string) {
	done, files, _ := strings.Cut(text, " ")
	for f := range strings.FieldsSeq(files) {
		repairs = append(repairs, done+" "+f)
	}
	return repairs
}

// filesOfObjects names the files of the token's objects, as reports do.
func filesOfObjects(t *testing.T, n *node) (names []string) {
	t.Helper()
	tokens := filepath.Join(n.SoftHSM, "tokens")
	for _, f := range objectFiles(t, tokens) {
		names = append(names, strings.TrimPrefix(f, tokens+"/"))
	}
	return names
}

func killWorkers(t *testing.T, d *daemon) {
	for _, pid := range childrenOf(t, d.cmd.Process.Pid) {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
}

// killWhenAnObjectIsMade kills the workers at the moment at which the next object's file appears.
// The channel is closed when it has.
func killWhenAnObjectIsMade(t *testing.T, n *node, d *daemon) <-chan struct{} {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	watch := os.NewFile(uintptr(fd), "inotify")
	dirs, err := filepath.Glob(filepath.Join(n.SoftHSM, "tokens", "*"))
	if err != nil || len(dirs) != 1 {
		t.Fatalf("token directories: %q %v", dirs, err)
	}
	if _, err := unix.InotifyAddWatch(fd, dirs[0], unix.IN_CREATE); err != nil {
		t.Fatal(err)
	}
	if err := watch.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	killed := make(chan struct{})
	go func() {
		defer close(killed)
		defer watch.Close()
		buf := make([]byte, 4096)
		for {
			size, err := watch.Read(buf)
			if err != nil {
				t.Errorf("no object was made: %v", err)
				return
			}
			if strings.Contains(string(buf[:size]), ".object") {
				killWorkers(t, d)
				return
			}
		}
	}()
	return killed
}
