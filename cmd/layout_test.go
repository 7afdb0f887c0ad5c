package cmd_test

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/kekd/kekd/"

// mayImport is which of our packages each may import; what is not listed may import none.
// Everyone may import the words (hierarchy), which import nothing of ours. Only the commands
// join hsm and cluster.
var mayImport = map[string][]string{
	"stats":   {},
	"metrics": {"stats"},

	"hierarchy":                       {},
	"hierarchy/commandpb":             {},
	"hierarchy/policy":                {},
	"hierarchy/envelope":              {},
	"hierarchy/audit":                 {"stats"},
	"hierarchy/approval":              {},
	"hierarchy/approval/approvaltest": {"hierarchy/approval"},
	"hierarchy/state":                 {"hierarchy/commandpb", "hierarchy/policy"},
	"hierarchy/quota":                 {"hierarchy/commandpb", "hierarchy/state", "hierarchy/policy"},
	"hierarchy/custody":               {"hierarchy/state", "hierarchy/policy", "hierarchy/envelope", "hierarchy/audit", "hierarchy/quota", "hsm"},
	"hierarchy/capacity":              {"hierarchy/state"},
	"hierarchy/reconcile":             {"hierarchy/capacity", "hierarchy/state", "hierarchy/commandpb", "hsm"},

	"hsm":          {},
	"hsm/pkcs11":   {"hsm"},
	"hsm/identity": {"hsm"},
	"hsm/softhsm":  {},
	"hsm/markfile": {"hsm"},
	"hsm/worker":   {"hsm", "stats"},
	"hsm/hsmtest":  {"hsm", "hsm/pkcs11"},

	"cluster/lease":      {},
	"cluster/view":       {"cluster/lease", "hierarchy/state"},
	"cluster/peerpb":     {},
	"cluster/peer":       {"cluster/peerpb"},
	"cluster/peer/devca": {},
	"cluster":            {"cluster/lease", "cluster/peer", "cluster/peerpb", "hierarchy/state", "hierarchy/commandpb", "stats"},

	"unix-socket-api/kekdv1":  {},
	"unix-socket-api/vtcodec": {},
	"unix-socket-api/apierr":  {"unix-socket-api/kekdv1"},
	"unix-socket-api/client":  {"unix-socket-api/kekdv1", "unix-socket-api/apierr", "unix-socket-api/vtcodec"},
	"unix-socket-api": {"unix-socket-api/kekdv1", "unix-socket-api/apierr", "unix-socket-api/vtcodec",
		"hierarchy/custody", "hierarchy/state", "hierarchy/policy", "hierarchy/commandpb"},
}

// free are the packages that join others, or that only tests use.
var free = []string{"cmd", "examples", "softhsm-tests"}

func TestImportDirections(t *testing.T) {
	out, err := exec.Command("go", "list", "-f", "{{.ImportPath}} {{join .Imports \" \"}}", module+"...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	seen := 0
	for line := range strings.Lines(string(out)) {
		words := strings.Fields(line)
		pkg := strings.TrimPrefix(words[0], module)
		if top, _, _ := strings.Cut(pkg, "/"); slices.Contains(free, top) {
			continue
		}
		allowed, known := mayImport[pkg]
		if !known {
			t.Errorf("%s is not in the layout: say what it may import", pkg)
			continue
		}
		seen++
		for _, imported := range words[1:] {
			ours, isOurs := strings.CutPrefix(imported, module)
			if isOurs && (ours != "hierarchy" || pkg == "hierarchy") && !slices.Contains(allowed, ours) {
				t.Errorf("%s may not import %s", pkg, ours)
			}
		}
	}
	if seen < 15 {
		t.Errorf("go list names %d packages of the layout", seen)
	}
}

// The daemon's own code is the only place where hsm and cluster meet.
func TestHSMAndClusterMeetInTheDaemonOnly(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "-f", "{{.ImportPath}}", module+"cluster").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	if strings.Contains(string(out), module+"hsm") {
		t.Error("cluster depends on hsm")
	}
	out, err = exec.Command("go", "list", "-deps", "-f", "{{.ImportPath}}", module+"cmd/kekctl").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	for _, heavy := range []string{"hsm", "cluster", "hierarchy/state", "hierarchy/custody"} {
		if slices.Contains(strings.Fields(string(out)), module+heavy) {
			t.Errorf("kekctl depends on %s", heavy)
		}
	}
}
