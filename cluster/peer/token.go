package peer

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/kekd/kekd/cluster/peerpb"
	"github.com/kekd/kekd/hierarchy"
)

// JoinToken is what an invitation hands out: where to join, whom to trust there, and a secret that
// works once. It prints as what it is for, without the secret.
type JoinToken struct {
	Cluster hierarchy.ClusterID
	// CA names the authority that whoever is asked to join has to have its certificate of; see [CAHash].
	CA         [32]byte
	Invitation hierarchy.ID
	Secret     [32]byte
	// Addresses are host:port of members.
	Addresses []string
	// Node and Region are the names that the node joins under.
	Node   string
	Region string
	// Role is the region's: voting, replica or witness.
	Role string
	// NewRegion tells that the region was not there when the node was invited.
	NewRegion bool
	Expires   time.Time
}

const (
	tokenPrefix = "kekd-join:v1:"
	// maxToken is the longest text of one, in bytes.
	maxToken     = 8 << 10
	maxAddresses = 64
)

// ErrJoinToken means that a text is no join token.
var ErrJoinToken = errors.New("not a join token")

// tokenText takes no other text for the same bytes.
var tokenText = base64.RawURLEncoding.Strict()

// Encode is the text that [ParseJoinToken] reads. Whoever has it can join.
func (t *JoinToken) Encode() string {
	m := &peerpb.JoinToken{
		ClusterId: t.Cluster.ID[:], CaSha256: t.CA[:], InvitationId: t.Invitation[:], Secret: t.Secret[:],
		Addresses: t.Addresses, Node: t.Node, Region: t.Region, Role: t.Role, NewRegion: t.NewRegion,
		ExpiresAt: t.Expires.UnixNano(),
	}
	b, err := m.MarshalVT()
	if err != nil {
		panic(err) // a message of strings and bytes always can be
	}
	defer clear(b)
	return sealToken(b)
}

// tokenSum is how many bytes of the SHA-256 over the message follow it. A message that is cut off may be a
// message too: the fields at its end would be missing, and nobody would see it.
const tokenSum = 4

// sealToken is the text of a message.
func sealToken(message []byte) string {
	sum := sha256.Sum256(message)
	b := slices.Concat(message, sum[:tokenSum])
	defer clear(b)
	return tokenPrefix + tokenText.EncodeToString(b)
}

// openToken is the message of a text, without the prefix. The caller clears it.
func openToken(text string) ([]byte, error) {
	b, err := tokenText.DecodeString(text)
	if err != nil || len(b) < tokenSum || strings.ContainsAny(text, "\r\n") { // which the decoder leaves out
		clear(b)
		return nil, errNotWhole
	}
	message, sum := b[:len(b)-tokenSum], b[len(b)-tokenSum:]
	if want := sha256.Sum256(message); !bytes.Equal(want[:tokenSum], sum) {
		clear(b)
		return nil, errNotWhole
	}
	return message, nil
}

var errNotWhole = errors.New("it is not complete, or characters of it are wrong: copy it anew")

// ParseJoinToken reads what [JoinToken.Encode] writes, and nothing else: there is one text for each
// token. Its error is an [ErrJoinToken] and does not repeat the text, which may be all but right.
func ParseJoinToken(s string) (*JoinToken, error) {
	t, err := parseToken(s)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrJoinToken, err)
	}
	return t, nil
}

func parseToken(s string) (*JoinToken, error) {
	if len(s) > maxToken {
		return nil, fmt.Errorf("it has %d characters, at most %d are allowed", len(s), maxToken)
	}
	text, ok := strings.CutPrefix(s, tokenPrefix)
	if !ok {
		if strings.HasPrefix(s, "kekd-join:") {
			return nil, errors.New("it is of another version of kekd")
		}
		return nil, fmt.Errorf("it does not begin with %s", tokenPrefix)
	}
	b, err := openToken(text)
	if err != nil {
		return nil, err
	}
	defer clear(b)
	m := new(peerpb.JoinToken)
	if err := m.UnmarshalVT(b); err != nil {
		return nil, errors.New("it is damaged")
	}
	defer clear(m.Secret)
	t := &JoinToken{
		Addresses: m.Addresses, Node: m.Node, Region: m.Region, Role: m.Role, NewRegion: m.NewRegion,
		Expires: time.Unix(0, m.ExpiresAt),
	}
	if t.Cluster.ID, err = hierarchy.IDFromBytes(m.ClusterId); err != nil {
		return nil, err
	}
	if t.Invitation, err = hierarchy.IDFromBytes(m.InvitationId); err != nil {
		return nil, err
	}
	if len(m.CaSha256) != len(t.CA) || len(m.Secret) != len(t.Secret) {
		return nil, errors.New("its hash or its secret is cut off")
	}
	copy(t.CA[:], m.CaSha256)
	copy(t.Secret[:], m.Secret)
	if err := t.check(); err != nil {
		return nil, err
	}
	if t.Encode() != s {
		return nil, errors.New("it has more in it than this version knows")
	}
	return t, nil
}

func (t *JoinToken) check() error {
	if t.Cluster.IsZero() || t.Invitation.IsZero() {
		return errors.New("it names no cluster or no invitation")
	}
	for _, name := range []string{t.Node, t.Region} {
		if err := hierarchy.ValidateName(name); err != nil {
			return err
		}
	}
	switch t.Role {
	case "voting", "replica", "witness":
	default:
		return fmt.Errorf("there is no role %q", t.Role)
	}
	if len(t.Addresses) == 0 || len(t.Addresses) > maxAddresses {
		return fmt.Errorf("it has %d addresses; 1 to %d are allowed", len(t.Addresses), maxAddresses)
	}
	for _, a := range t.Addresses {
		if err := checkAddress(a); err != nil {
			return err
		}
	}
	if t.Expires.UnixNano() <= 0 {
		return errors.New("it has no end")
	}
	return nil
}

func checkAddress(a string) error {
	host, port, err := net.SplitHostPort(a)
	if err != nil {
		return fmt.Errorf("%q is not host:port", a)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 || strconv.FormatUint(n, 10) != port || host == "" || len(host) > 253 {
		return fmt.Errorf("%q is not host:port", a)
	}
	for _, r := range host {
		if r <= ' ' || r > '~' {
			return fmt.Errorf("%q is not host:port", a)
		}
	}
	return nil
}

func (t JoinToken) String() string {
	return fmt.Sprintf("a join token for node %q in region %q (%s) of cluster %s, until %s", t.Node, t.Region, t.Role, t.Cluster, t.Expires.UTC().Format(time.RFC3339))
}

// Format keeps the secret out of whatever it is printed with.
func (t JoinToken) Format(f fmt.State, _ rune) { io.WriteString(f, t.String()) }

// LogValue keeps it out of the log.
func (t JoinToken) LogValue() slog.Value { return slog.StringValue(t.String()) }
