package softhsmtests

import (
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
)

// Every test that the documentation names is there.
func TestDocumentationNamesTestsThatExist(t *testing.T) {
	t.Parallel()
	named := regexp.MustCompile("`(Test[A-Za-z]+|Fuzz[A-Za-z]+)`")
	for _, path := range []string{"../docs/OPERATIONS.md", "../docs/TESTING.md"} {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		found := named.FindAllStringSubmatch(string(text), -1)
		if len(found) == 0 {
			t.Errorf("%s names no test", path)
		}
		for _, m := range found {
			out, err := exec.Command("grep", "-rlE", "--include=*_test.go", "^func "+m[1]+"[(]", "..").CombinedOutput()
			if err != nil {
				t.Errorf("%s names %s, which is not there: %v %s", path, m[1], err, strings.TrimSpace(string(out)))
			}
		}
	}
}
