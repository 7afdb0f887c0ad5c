package lease_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const (
	model = "model"
	root  = "../.." // of the repository, which the model's page names files from
)

func readModel(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(model, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// declared are the names of a file: functions, types, and methods as Type.method.
func declared(t *testing.T, path string) map[string]bool {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatalf("the model's page names a file that cannot be read: %v", err)
	}
	names := map[string]bool{}
	for _, d := range f.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			name := d.Name.Name
			if d.Recv != nil {
				of := d.Recv.List[0].Type
				if p, ok := of.(*ast.StarExpr); ok {
					of = p.X
				}
				name = of.(*ast.Ident).Name + "." + name
			}
			names[name] = true
		case *ast.GenDecl:
			for _, s := range d.Specs {
				if s, ok := s.(*ast.TypeSpec); ok {
					names[s.Name.Name] = true
				}
			}
		}
	}
	return names
}

var (
	namedInFile = regexp.MustCompile("`([a-z0-9/_-]+\\.go)`: (`[A-Za-z0-9.]+`(?:, `[A-Za-z0-9.]+`)*)")
	anyFile     = regexp.MustCompile("`[a-z0-9/_-]+\\.go`")
)

// What the page of the models says of the code is there.
func TestModelNamesWhatIsThere(t *testing.T) {
	page := readModel(t, "README.md")
	found := namedInFile.FindAllStringSubmatch(page, -1)
	if all := len(anyFile.FindAllString(page, -1)); len(found) != all || all < 20 {
		t.Errorf("%d files are named, %d of them with functions; each has to be `FILE`: `NAME`, `NAME`", all, len(found))
	}
	for _, m := range found {
		there := declared(t, filepath.Join(root, m[1]))
		for name := range strings.SplitSeq(m[2], ", ") {
			if name = strings.Trim(name, "`"); !there[name] {
				t.Errorf("%s has no %s", m[1], name)
			}
		}
	}
}

var choice = regexp.MustCompile(`(?m)^#\s*(?:ifdef|ifndef|if|elif)\s+(.*)$`)

// Each choice that a model has is made by a run, each run makes choices that there are, and the page has
// each run that leaves a rule out.
func TestModelRunsEachMutant(t *testing.T) {
	page := readModel(t, "README.md")
	made := map[string]map[string]bool{} // by model
	names := map[string]bool{}
	for line := range strings.Lines(readModel(t, "runs")) {
		words := strings.Fields(line)
		if len(words) == 0 || strings.HasPrefix(line, "#") {
			continue
		}
		if len(words) < 3 || !slices.Contains([]string{"holds", "fails"}, words[2]) || names[words[0]] {
			t.Errorf("a run is NAME MODEL holds|fails DEFINES..., and each name stands there once: %q", line)
			continue
		}
		names[words[0]] = true
		if made[words[1]] == nil {
			made[words[1]] = map[string]bool{}
		}
		for _, define := range words[3:] {
			name, _, _ := strings.Cut(define, "=")
			made[words[1]][name] = true
		}
		if words[0] == strings.ToUpper(words[0]) && !strings.Contains(page, "`"+words[0]+"`") {
			t.Errorf("README.md has no row for %s", words[0])
		}
	}
	models, err := filepath.Glob(filepath.Join(model, "*.pml"))
	if err != nil || len(models) != len(made) {
		t.Fatalf("there are models %v, and runs of %d (%v)", models, len(made), err)
	}
	word := regexp.MustCompile(`[A-Z][A-Z0-9_]+`)
	for _, path := range models {
		name := strings.TrimSuffix(filepath.Base(path), ".pml")
		choices := map[string]bool{}
		for _, m := range choice.FindAllStringSubmatch(readModel(t, name+".pml"), -1) {
			for _, w := range word.FindAllString(m[1], -1) {
				choices[w] = true
			}
		}
		for c := range choices {
			if !made[name][c] {
				t.Errorf("%s is a choice of %s.pml that no run makes", c, name)
			}
		}
		for c := range made[name] {
			if !choices[c] {
				t.Errorf("runs defines %s, which %s.pml does not know", c, name)
			}
		}
	}
}
