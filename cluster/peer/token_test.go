package peer_test

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/kekd/kekd/cluster/peer"
	"github.com/kekd/kekd/cluster/peerpb"
	"github.com/kekd/kekd/hierarchy"
)

const tokenPrefix = "kekd-join:v1:"

func someToken() *peer.JoinToken {
	return &peer.JoinToken{
		Cluster: ourCluster, CA: [32]byte{1, 2}, Invitation: idOf("invitation"), Secret: [32]byte([]byte("never shown to anybody, 32 bytes")),
		Addresses: []string{"10.0.0.1:7400", "[fd00::1]:7400", "node-b.example:7400"},
		Node:      "node-d", Region: "eu-west", Role: "voting", NewRegion: true, Expires: time.Unix(1_900_000_000, 5),
	}
}

func TestJoinTokenIsReadBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := someToken()
		want.Cluster.ID, want.Invitation = drawID(t, "cluster"), drawID(t, "invitation")
		want.CA, want.Secret = [32]byte{rapid.Byte().Draw(t, "ca")}, [32]byte{31: rapid.Byte().Draw(t, "secret")}
		want.Node, want.Region = names.Draw(t, "node"), names.Draw(t, "region")
		want.Role = rapid.SampledFrom([]string{"voting", "replica", "witness"}).Draw(t, "role")
		want.NewRegion = rapid.Bool().Draw(t, "new")
		want.Addresses = rapid.SliceOfN(rapid.SampledFrom(want.Addresses), 1, 64).Draw(t, "addresses")
		want.Expires = time.Unix(0, rapid.Int64Min(1).Draw(t, "expires"))
		text := want.Encode()
		got, err := peer.ParseJoinToken(text)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error("it is not read back as it was") // the difference has the secret
		}
		for cut := range len(text) { // the last fields may be left out: what is left is a message too
			if _, err := peer.ParseJoinToken(text[:cut]); !errors.Is(err, peer.ErrJoinToken) {
				t.Fatalf("the first %d characters of %d: %v", cut, len(text), err)
			}
		}
	})
}

func TestJoinTokenRefuses(t *testing.T) {
	with := func(f func(*peer.JoinToken)) string {
		tok := someToken()
		f(tok)
		return tok.Encode()
	}
	good := someToken().Encode()
	raw := message(t, good)
	short := &peerpb.JoinToken{}
	if err := short.UnmarshalVT(raw); err != nil {
		t.Fatal(err)
	}
	short.Secret = short.Secret[:31]
	shortSecret, err := short.MarshalVT()
	if err != nil {
		t.Fatal(err)
	}
	wrong := []byte(good)
	wrong[100]++
	for name, c := range map[string]struct{ text, words string }{
		"nothing":             {"", "does not begin with"},
		"another version":     {"kekd-join:v2:AAAA", "another version"},
		"padding":             {good + "=", "not complete"},
		"a line break":        {good + "\n", "not complete"},
		"a line break inside": {good[:60] + "\n" + good[60:], "not complete"},
		"a wrong character":   {string(wrong), "not complete"},
		"an unknown field":    {peer.SealToken(append(raw[:len(raw):len(raw)], 0xf8, 0x01, 0x01)), "more in it"},
		"a field twice":       {peer.SealToken(append(raw[:len(raw):len(raw)], raw[:18]...)), "more in it"},
		"a short secret":      {peer.SealToken(shortSecret), "cut off"},
		"no cluster":          {with(func(t *peer.JoinToken) { t.Cluster = hierarchy.ClusterID{} }), "names no cluster"},
		"no invitation":       {with(func(t *peer.JoinToken) { t.Invitation = hierarchy.ID{} }), "names no cluster or no invitation"},
		"a bad name":          {with(func(t *peer.JoinToken) { t.Node = "Node" }), "use a-z"},
		"no region":           {with(func(t *peer.JoinToken) { t.Region = "" }), "a name is empty"},
		"a role to come":      {with(func(t *peer.JoinToken) { t.Role = "observer" }), "no role"},
		"no address":          {with(func(t *peer.JoinToken) { t.Addresses = nil }), "0 addresses"},
		"too many addresses":  {with(func(t *peer.JoinToken) { t.Addresses = make([]string, 65) }), "65 addresses"},
		"no port":             {with(func(t *peer.JoinToken) { t.Addresses = []string{"a"} }), "not host:port"},
		"port 0":              {with(func(t *peer.JoinToken) { t.Addresses = []string{"a:0"} }), "not host:port"},
		"port 65536":          {with(func(t *peer.JoinToken) { t.Addresses = []string{"a:65536"} }), "not host:port"},
		"a named port":        {with(func(t *peer.JoinToken) { t.Addresses = []string{"a:http"} }), "not host:port"},
		"no host":             {with(func(t *peer.JoinToken) { t.Addresses = []string{":80"} }), "not host:port"},
		"a space in the host": {with(func(t *peer.JoinToken) { t.Addresses = []string{"a b:80"} }), "not host:port"},
		"no end":              {with(func(t *peer.JoinToken) { t.Expires = time.Unix(0, 0) }), "no end"},
		"too long":            {tokenPrefix + strings.Repeat("A", 8<<10), "at most 8192"},
	} {
		_, err := peer.ParseJoinToken(c.text)
		if !errors.Is(err, peer.ErrJoinToken) || !strings.Contains(err.Error(), c.words) {
			t.Errorf("%s: got %v, want an ErrJoinToken that says %q", name, err, c.words)
		}
	}
}

// Whatever a token is printed with, its secret is not in it.
func TestJoinTokenDoesNotPrintItsSecret(t *testing.T) {
	tok := someToken()
	var log logBuffer
	for _, v := range []any{tok, *tok, []any{tok}, struct{ T peer.JoinToken }{*tok}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
			fmt.Fprintf(&log, verb+"\n", v)
		}
		slog.New(slog.NewTextHandler(&log, nil)).Info("text", "token", v)
	}
	slog.New(slog.NewJSONHandler(&log, nil)).Info("JSON", "token", tok, "value", *tok)
	_, err := peer.ParseJoinToken(tok.Encode() + "A")
	fmt.Fprintln(&log, err)
	said := log.String()
	secret := tok.Secret[:]
	for _, form := range []string{
		string(secret), hex.EncodeToString(secret), base64.StdEncoding.EncodeToString(secret)[:20],
		base64.RawURLEncoding.EncodeToString(secret)[:20], strings.Trim(fmt.Sprint(secret), "[]"), tok.Encode()[100:120],
	} {
		if strings.Contains(said, form) {
			t.Error("the secret is printed") // and not here
		}
	}
	if !strings.Contains(said, `a join token for node "node-d"`) {
		t.Error("it does not say what it is for")
	}
}

// message is what the text of a token has in it.
func message(t testing.TB, text string) []byte {
	t.Helper()
	b, err := base64.RawURLEncoding.DecodeString(strings.TrimPrefix(text, tokenPrefix))
	if err != nil {
		t.Fatal(err)
	}
	return b[:len(b)-4]
}

// There is one text for each token: of texts as they come, and of messages that are sealed as they should be.
func FuzzJoinToken(f *testing.F) {
	good := someToken().Encode()
	f.Add(good, message(f, good))
	f.Add(tokenPrefix, []byte{})
	f.Add("kekd-join:v2:AAAA", []byte{0x0a, 0x00})
	f.Fuzz(func(t *testing.T, text string, message []byte) {
		for _, text := range []string{text, peer.SealToken(message)} {
			tok, err := peer.ParseJoinToken(text)
			if err != nil {
				if !errors.Is(err, peer.ErrJoinToken) {
					t.Fatal(err)
				}
				continue
			}
			if tok.Encode() != text {
				t.Fatal("it is written otherwise than it was read")
			}
		}
	})
}
