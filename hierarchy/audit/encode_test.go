package audit_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/audit"
)

func hashes() *rapid.Generator[audit.Hash] {
	return rapid.Custom(func(t *rapid.T) audit.Hash {
		return audit.Hash(rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "hash"))
	})
}

func ids() *rapid.Generator[hierarchy.ID] {
	return rapid.Custom(func(t *rapid.T) hierarchy.ID {
		return hierarchy.ID(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "id"))
	})
}

// short text is at most as long as every limit.
func short() *rapid.Generator[string] { return rapid.StringN(0, 16, audit.MaxCode) }

func records() *rapid.Generator[audit.Record] {
	return rapid.Custom(func(t *rapid.T) audit.Record {
		r := audit.Record{
			Kind:       rapid.StringMatching(`[a-z0-9-]{1,64}`).Filter(func(s string) bool { return s != "segment" && s != "checkpoint" && s != "recovered" }).Draw(t, "kind"),
			At:         time.Unix(rapid.Int64Range(-62135596799, 253402300799).Draw(t, "at"), rapid.Int64Range(0, 999999999).Draw(t, "ns")).UTC(),
			Epoch:      rapid.Uint64().Draw(t, "epoch"),
			TenantName: short().Draw(t, "tenant name"),
			Key:        short().Draw(t, "key"),
			Version:    rapid.Uint32().Draw(t, "version"),
			Service:    short().Draw(t, "service"),
			Outcome:    rapid.SampledFrom([]audit.Outcome{"", "ok", "denied", "failed", "withheld", "authorised", "requested"}).Draw(t, "outcome"),
			Code:       short().Draw(t, "code"),
			Reason:     short().Draw(t, "reason"),
			Of:         rapid.Uint64().Draw(t, "of"),
			Detail:     short().Draw(t, "detail"),
		}
		if rapid.Bool().Draw(t, "has tenant") {
			r.Tenant.ID = ids().Draw(t, "tenant")
		}
		if rapid.Bool().Draw(t, "has envelope") {
			r.Envelope = hashes().Draw(t, "envelope")
		}
		if rapid.Bool().Draw(t, "has caller") {
			r.Caller = &hierarchy.Principal{UID: rapid.Uint32().Draw(t, "uid"), GID: rapid.Uint32().Draw(t, "gid"), PID: rapid.Int32().Draw(t, "pid")}
		}
		return r
	})
}

func entries() *rapid.Generator[*audit.Entry] {
	return rapid.Custom(func(t *rapid.T) *audit.Entry {
		e := &audit.Entry{Record: records().Draw(t, "record"), Sequence: rapid.Uint64().Draw(t, "seq"), Prev: hashes().Draw(t, "prev")}
		e.Node.ID = ids().Draw(t, "node")
		switch rapid.IntRange(0, 4).Draw(t, "sort") {
		case 0:
			e.Record = audit.Record{Kind: audit.KindCheckpoint}
			e.Checkpoint = &audit.Checkpoint{Node: e.Node, Sequence: rapid.Uint64().Draw(t, "signed"), Head: hashes().Draw(t, "head"), Signature: rapid.SliceOfN(rapid.Byte(), 1, 72).Draw(t, "signature")}
		case 1:
			e.Kind = audit.KindSegment
			e.Segment = &audit.SegmentHeader{Format: audit.FormatVersion, PublicKey: rapid.SliceOfN(rapid.Byte(), 1, 91).Draw(t, "key")}
			e.Segment.Cluster.ID = ids().Draw(t, "cluster")
			for range rapid.IntRange(0, 3).Draw(t, "heads") {
				e.Segment.Heads = append(e.Segment.Heads, audit.Head{Tenant: hierarchy.TenantID{ID: ids().Draw(t, "tenant")}, TenantSequence: rapid.Uint64().Draw(t, "tseq"), Sequence: rapid.Uint64().Draw(t, "seq"), Hash: hashes().Draw(t, "hash")})
			}
		}
		if !e.Tenant.IsZero() {
			e.TenantSequence = rapid.Uint64Min(1).Draw(t, "tseq")
			e.TenantPrev = hashes().Draw(t, "tprev")
		}
		return e
	})
}

func TestLineRoundTrips(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := entries().Draw(t, "entry")
		line := e.AppendLine(nil)
		for i, c := range line {
			if c < 0x20 || c > 0x7e {
				t.Fatalf("byte %#x at %d is not printable ASCII: %q", c, i, line)
			}
		}
		if e.Segment == nil && len(line) >= audit.MaxLine {
			t.Fatalf("a line of %d bytes", len(line))
		}
		back, err := audit.ParseLine(line)
		if err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		if diff := cmp.Diff(e, back); diff != "" {
			t.Fatalf("read back (-wrote +read):\n%s", diff)
		}
	})
}

// jsonRecord reads a line as a stranger would.
type jsonRecord struct {
	Kind       string    `json:"kind"`
	At         time.Time `json:"at"`
	Node       string    `json:"node"`
	Epoch      uint64    `json:"epoch"`
	Tenant     string    `json:"tenant"`
	TenantName string    `json:"tenant_name"`
	Key        string    `json:"key"`
	Version    uint32    `json:"version"`
	UID        *uint32   `json:"uid"`
	GID        *uint32   `json:"gid"`
	PID        *int32    `json:"pid"`
	Service    string    `json:"service"`
	Outcome    string    `json:"outcome"`
	Code       string    `json:"code"`
	Reason     string    `json:"reason"`
	Envelope   string    `json:"envelope"`
	Of         uint64    `json:"of"`
	Detail     string    `json:"detail"`
	Seq        uint64    `json:"seq"`
	Prev       string    `json:"prev"`
	TSeq       uint64    `json:"tseq"`
	TPrev      string    `json:"tprev"`
}

func TestLineIsJSON(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := &audit.Entry{Record: records().Draw(t, "record"), Sequence: rapid.Uint64().Draw(t, "seq"), Prev: hashes().Draw(t, "prev")}
		e.Node.ID = ids().Draw(t, "node")
		want := jsonRecord{
			Kind: e.Kind, At: e.At, Node: e.Node.String(), Epoch: e.Epoch, TenantName: e.TenantName, Key: e.Key, Version: e.Version,
			Service: e.Service, Outcome: string(e.Outcome), Code: e.Code, Reason: e.Reason, Of: e.Of, Detail: e.Detail, Seq: e.Sequence, Prev: e.Prev.String(),
		}
		if !e.Tenant.IsZero() {
			e.TenantSequence = 7
			want.Tenant, want.TSeq, want.TPrev = e.Tenant.String(), 7, e.TenantPrev.String()
		}
		if e.Envelope != (audit.Hash{}) {
			want.Envelope = e.Envelope.String()
		}
		if e.Caller != nil {
			want.UID, want.GID, want.PID = &e.Caller.UID, &e.Caller.GID, &e.Caller.PID
		}
		var got jsonRecord
		dec := json.NewDecoder(strings.NewReader(string(e.AppendLine(nil))))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&got); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("as JSON (-wrote +read):\n%s", diff)
		}
	})
}

func TestLongTextIsCut(t *testing.T) {
	for _, text := range []string{strings.Repeat("\x1b", 5000), strings.Repeat("ü", 5000), strings.Repeat("𝄞", 5000), strings.Repeat("\xff", 5000), strings.Repeat("\x80", 5000)} {
		e := audit.Entry{Record: audit.Record{
			Kind: strings.Repeat("k", audit.MaxKind), At: time.Now(), Epoch: 1<<64 - 1, Tenant: tenant(1), TenantName: text, Key: text, Version: 1<<32 - 1,
			Caller:  &hierarchy.Principal{UID: 1<<32 - 1, GID: 1<<32 - 1, PID: -1 << 31},
			Service: text, Outcome: audit.OutcomeAuthorised, Code: text, Reason: text, Envelope: audit.Hash{1}, Of: 1<<64 - 1, Detail: text,
		}, Sequence: 1<<64 - 1, TenantSequence: 1<<64 - 1}
		line := e.AppendLine(nil)
		if len(line) >= audit.MaxLine {
			t.Errorf("a line of %d bytes", len(line))
		}
		back, err := audit.ParseLine(line)
		if err != nil {
			t.Fatal(err)
		}
		if n := len(e.Reason); len(back.Reason) >= n || !utf8.ValidString(back.Reason) || !strings.HasSuffix(back.Reason, "…") {
			t.Errorf("%.10q was cut to %q", text, back.Reason)
		}
	}
}

// TestTextCannotPretend is about the caller's words in a log that people look at.
func TestTextCannotPretend(t *testing.T) {
	e := audit.Entry{Record: audit.Record{Kind: "unwrap", At: time.Now(), Reason: "x\"}\n{\"kind\":\"unwrap\"\r\x1b[2J\u202e\u0085\u009b\x7f\\"}, Sequence: 1}
	line := string(e.AppendLine(nil))
	const want = `"reason":"x\"}\u000a{\"kind\":\"unwrap\"\u000d\u001b[2J\u202e\u0085\u009b\u007f\\"`
	if !strings.Contains(line, want) {
		t.Errorf("got %s\nwant %s", line, want)
	}
}

func TestParseRefuses(t *testing.T) {
	good := string((&audit.Entry{Record: unwrap(1), Sequence: 12, TenantSequence: 3}).AppendLine(nil))
	parse(t, good)
	for name, edit := range map[string][2]string{
		"space":                {`,"node"`, `, "node"`},
		"leading zero":         {`"seq":12`, `"seq":012`},
		"upper-case hex":       {`"envelope":"e1`, `"envelope":"E1`},
		"zero field":           {`"epoch":1`, `"epoch":0`},
		"time with offset":     {`Z","node"`, `+00:00","node"`},
		"short time":           {`.000000001Z`, `.0001Z`},
		"needless escape":      {`"orders"`, `"\u006frders"`},
		"raw control":          {`"orders"`, "\"or\x1bders\""},
		"raw UTF-8":            {`"orders"`, `"ördérs"`},
		"half pair":            {`"orders"`, `"\ud834"`},
		"fields swapped":       {`"key":"orders","version":3`, `"version":3,"key":"orders"`},
		"field twice":          {`"version":3`, `"version":3,"version":3`},
		"unknown field":        {`"version":3`, `"version":3,"x":1`},
		"unknown outcome":      {`"ok"`, `"fine"`},
		"kind":                 {`"unwrap"`, `"Unwrap"`},
		"tenant without place": {`,"tseq":3`, `,"tseq":0`},
		"number too large":     {`"version":3`, `"version":4294967296`},
		"text too long":        {`"orders"`, `"` + strings.Repeat("o", 200) + `"`},
		"trailing":             {`"}`, `"} `},
		"cut short":            {`"}`, `"`},
		"segment, bare":        {`"unwrap"`, `"segment"`},
		"checkpoint, bare":     {`"unwrap"`, `"checkpoint"`},
	} {
		bad := strings.Replace(good, edit[0], edit[1], 1)
		if bad == good {
			t.Fatalf("%s: nothing to edit in %s", name, good)
		}
		if _, err := audit.ParseLine([]byte(bad)); !errors.Is(err, audit.ErrMalformed) {
			t.Errorf("%s: got %v for %s", name, err, bad)
		}
	}
}

func FuzzParseLine(f *testing.F) {
	e := audit.Entry{Record: unwrap(1), Sequence: 12, TenantSequence: 3}
	e.Reason = "a \"b\" \\ ü 𝄞 \x00"
	f.Add(e.AppendLine(nil))
	c := audit.Entry{Record: audit.Record{Kind: audit.KindCheckpoint}, Sequence: 2, Checkpoint: &audit.Checkpoint{Sequence: 1, Signature: []byte{1, 2}}}
	f.Add(c.AppendLine(nil))
	s := audit.Entry{Record: audit.Record{Kind: audit.KindSegment}, Sequence: 1, Segment: &audit.SegmentHeader{Format: 1, PublicKey: []byte{3}, Heads: []audit.Head{{Tenant: tenant(1)}}}}
	f.Add(s.AppendLine(nil))
	f.Fuzz(func(t *testing.T, line []byte) {
		e, err := audit.ParseLine(line)
		if err != nil {
			if !errors.Is(err, audit.ErrMalformed) {
				t.Fatalf("error of another sort: %v", err)
			}
			return
		}
		if !json.Valid(line) {
			t.Fatalf("read, and not JSON: %q", line)
		}
		if again := e.AppendLine(nil); string(again) != string(line) {
			t.Fatalf("written again:\n%s\nread:\n%s", again, line)
		}
	})
}

func FuzzText(f *testing.F) {
	f.Add("a \"b\" \\ ü 𝄞 \x00\xff")
	f.Fuzz(func(t *testing.T, s string) {
		e := audit.Entry{Record: audit.Record{Kind: "x", Reason: s}, Sequence: 1}
		line := e.AppendLine(nil)
		var got jsonRecord
		if err := json.Unmarshal(line, &got); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		if want := strings.ToValidUTF8(s, "\ufffd"); len(want) <= audit.MaxReason && len(s) <= audit.MaxReason && got.Reason != want {
			t.Fatalf("got %q, want %q", got.Reason, want)
		}
		back, err := audit.ParseLine(line)
		if err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		if back.Reason != got.Reason {
			t.Fatalf("read %q, encoding/json reads %q", back.Reason, got.Reason)
		}
	})
}
