package approval_test

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/kekd/kekd/hierarchy/approval"
	"github.com/kekd/kekd/hierarchy/approval/approvaltest"
)

// goldenSignatures has a line for each kind of key: the key, as in authorized_keys, and a signature by it over
// the golden statement.
const goldenSignatures = "testdata/v1.signatures"

// What was a good signature is one for ever: it is verified again whenever a node reads its log.
func TestGoldenSignatures(t *testing.T) {
	text, err := statement().Text()
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		var lines strings.Builder
		kinds := everyKind()
		for _, kind := range slices.Sorted(maps.Keys(kinds)) {
			s := kinds[kind]
			fmt.Fprintln(&lines, approvaltest.Key(s), base64.StdEncoding.EncodeToString(approvaltest.Sign(s, text)))
		}
		if err := os.WriteFile(goldenSignatures, []byte(lines.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	file, err := os.ReadFile(goldenSignatures)
	if err != nil {
		t.Fatal(err)
	}
	kinds := everyKind()
	for line := range strings.Lines(string(file)) {
		var kind, key, signature string
		if _, err := fmt.Sscan(line, &kind, &key, &signature); err != nil {
			t.Fatal(err)
		}
		wire, err := base64.StdEncoding.DecodeString(signature)
		if err != nil {
			t.Fatal(err)
		}
		sig, err := approval.ParseSignature(wire)
		if err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		if sig.Key.String() != kind+" "+key {
			t.Errorf("%s: it is by %s", kind, sig.Key)
		}
		if err := sig.Verify(text); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
		if sig.Verify(bytes.Replace(text, []byte("acme"), []byte("acne"), 1)) == nil {
			t.Errorf("%s: it is over another statement too", kind)
		}
		delete(kinds, kind)
	}
	for kind := range kinds {
		t.Errorf("%s: there is no signature by such a key", kind)
	}
}
