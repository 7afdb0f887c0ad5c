package history_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/kekd/kekd/softhsm-tests/history"
)

func TestAFileIsWhatWasRecorded(t *testing.T) {
	var r history.Recorder
	never := r.Begin(history.Operation{Client: 1, Kind: history.Create, Tenant: "acme", ID: "aa"})
	p := r.Begin(history.Operation{Client: 2, Kind: history.Set, Tenant: "acme", Value: 7})
	read := r.Begin(history.Operation{Kind: history.Read, Tenant: "acme", Fresh: true})
	p.End(history.Operation{Node: "a", Run: 3, Tries: 2, Outcome: ok, Index: 9})
	yes := true
	read.End(history.Operation{Node: "b", Outcome: ok, Index: 10, Seen: &history.Seen{State: "enabled", Value: 7, Allowed: &yes}})
	_ = never

	h := &history.History{Name: t.Name(), Seed: 5, Rules: history.Rules{Staleness: 3, Fenced: true}, Operations: r.Operations()}
	path, err := h.Save(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	got, err := history.Load(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(h, got); diff != "" {
		t.Error(diff)
	}
	want := []history.Operation{
		{Client: 1, Kind: history.Create, Tenant: "acme", ID: "aa", Outcome: unknown},
		{Client: 2, Kind: history.Set, Tenant: "acme", Value: 7, Node: "a", Run: 3, Tries: 2, Outcome: ok, Index: 9},
		{Kind: history.Read, Tenant: "acme", Fresh: true, Node: "b", Outcome: ok, Index: 10, Seen: &history.Seen{State: "enabled", Value: 7, Allowed: &yes}},
	}
	if diff := cmp.Diff(want, got.Operations, cmpopts.IgnoreFields(history.Operation{}, "Call", "Return")); diff != "" {
		t.Error(diff)
	}
	for i, o := range got.Operations {
		if o.Call <= 0 || i > 0 && o.Return < o.Call || i == 0 && o.Return != 0 {
			t.Errorf("its times: %v", o)
		}
	}
}

func TestRecorderTakesManyAtOnce(t *testing.T) {
	var r history.Recorder
	var running sync.WaitGroup
	for c := range 8 {
		running.Go(func() {
			for i := range 100 {
				p := r.Begin(history.Operation{Client: c, Kind: history.Set, Tenant: "acme", Value: uint64(i + 1)})
				p.End(history.Operation{Outcome: ok, Index: uint64(c*1000 + i)})
			}
		})
	}
	running.Wait()
	for i, o := range r.Operations() {
		if o.Outcome != ok || o.Index != uint64(o.Client*1000)+o.Value-1 {
			t.Fatalf("operation %d: %v", i, o)
		}
	}
}

const firstLine = `{"format":"kekd-history-1","name":"x","seed":1,"rules":{"staleness":0,"fenced":false}}` + "\n"

func TestWhatIsNoHistory(t *testing.T) {
	for _, tc := range []struct{ text, want string }{
		{"", "empty"},
		{"{}\n", "line 1"},
		{"\n", "line 1"},
		{firstLine + "x\n", "line 2"},
		{firstLine + `{"kind":"destroy","tenant":"acme","outcome":"unknown"}`, "no kind"},
		{firstLine + `{"kind":"create","tenant":"../acme","outcome":"unknown"}`, "no tenant's name"},
		{firstLine + `{"kind":"create","tenant":"acme","outcome":"perhaps"}`, "no outcome"},
		{firstLine + `{"kind":"create","tenant":"acme","outcome":"ok"}`, "no return"},
		{firstLine + `{"kind":"create","tenant":"acme","outcome":"ok","call":5,"return":4}`, "before it is called"},
		{firstLine + `{"kind":"create","tenant":"acme","outcome":"unknown","call":9223372036854775807}`, "no clock"},
		{firstLine + `{"kind":"set","tenant":"acme","outcome":"unknown"}`, "no value"},
		{firstLine + `{"kind":"read","tenant":"acme","outcome":"ok","return":4}`, "without what it showed"},
		{firstLine + `{"kind":"create","tenant":"acme","outcome":"unknown","colour":1}`, "colour"},
		{firstLine + `{"kind":"create","tenant":"acme","outcome":"unknown"} {}`, "follows"},
	} {
		if _, err := history.Load(strings.NewReader(tc.text)); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%q: got %v, want %q", tc.text, err, tc.want)
		}
	}
}

// What can be loaded can be judged, and is the same once it was written and loaded again.
func FuzzLoad(f *testing.F) {
	f.Add(firstLine + `{"client":1,"kind":"create","tenant":"acme","call":1,"return":2,"outcome":"ok","index":3}` + "\n")
	f.Add(firstLine + `{"kind":"read","tenant":"acme","call":1,"return":2,"outcome":"ok","index":3,"seen":{"state":"enabled","value":1,"allowed":true}}` + "\n" +
		`{"kind":"wrap","tenant":"acme","call":1,"return":2,"outcome":"refused","code":"TENANT_DISABLED"}` + "\n")
	f.Fuzz(func(t *testing.T, text string) {
		h, err := history.Load(strings.NewReader(text))
		if err != nil {
			return
		}
		if len(h.Operations) <= 8 { // a search among many that nothing orders takes exponential time
			history.Judge(h)
		}
		var b bytes.Buffer
		if err := h.Write(&b); err != nil {
			t.Fatal(err)
		}
		again, err := history.Load(&b)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(h, again, cmpopts.EquateEmpty()); diff != "" {
			t.Error(diff)
		}
	})
}

// The command says in words what cannot be, draws it, and ends so that make sees it.
func TestRecheck(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	recheck := filepath.Join(dir, "recheck")
	if out, err := exec.Command("go", "build", "-o", recheck, "./recheck").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	good := []history.Operation{op(history.Create, 10, 20, at(5)), op(history.Disable, 30, 40, at(6))}
	bad := append(good[:2:2], op(history.Read, 50, 60, at(7), by("b"), shows("enabled", 0)))
	for _, tc := range []struct {
		ops    []history.Operation
		status int
		words  []string
	}{
		{good, 0, []string{"2 operations of TestRecheck, KEKD_SEED=8", "all of it can be"}},
		{bad, 1, []string{"1. tenant acme, linearizable:", "it shows enabled, value 0, and the state is: disabled", "drawn in"}},
		{[]history.Operation{{Kind: "none"}}, 2, []string{"line 2", "no kind"}},
	} {
		path, err := (&history.History{Name: t.Name(), Seed: 8, Operations: tc.ops}).Save(dir)
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(recheck, path)
		out, _ := cmd.CombinedOutput()
		if got := cmd.ProcessState.ExitCode(); got != tc.status {
			t.Errorf("status %d, want %d", got, tc.status)
		}
		for _, w := range tc.words {
			if !strings.Contains(string(out), w) {
				t.Errorf("it does not say %q:\n%s", w, out)
			}
		}
		page, err := os.ReadFile(path + ".acme.html")
		if (err == nil) != (tc.status == 1) || err == nil && !bytes.Contains(page, []byte("disable acme")) {
			t.Errorf("the page: %v, %d bytes", err, len(page))
		}
	}
}
