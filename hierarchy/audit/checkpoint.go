package audit

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/kekd/kekd/hierarchy"
)

// Checkpoint is a signed head of a node's journal: it fixes every record up to Sequence.
type Checkpoint struct {
	Cluster   hierarchy.ClusterID
	Node      hierarchy.NodeID
	Sequence  uint64
	Head      Hash   // of the record at Sequence
	Signature []byte // ECDSA P-256 in ASN.1 DER, over the SHA-256 of SignedText
}

var (
	// ErrCheckpoint is a text that is no checkpoint.
	ErrCheckpoint = errors.New("not an audit checkpoint")
	// ErrSignature is a signature that the public key did not make over this checkpoint.
	ErrSignature = errors.New("the signature of the audit checkpoint does not verify")
)

// checkpointDomain keeps the signature from meaning anything else that the identity signs.
const checkpointDomain = "kekd audit checkpoint v1"

// SignedText is what is signed:
//
//	kekd audit checkpoint v1
//	cluster 000102030405060708090a0b0c0d0e0f
//	node 101112131415161718191a1b1c1d1e1f
//	sequence 1234
//	head e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
//
// Every line ends with a newline.
func (c Checkpoint) SignedText() []byte {
	return fmt.Appendf(nil, "%s\ncluster %s\nnode %s\nsequence %d\nhead %s\n", checkpointDomain, c.Cluster, c.Node, c.Sequence, c.Head)
}

// MarshalText is SignedText and one line more: "signature " and standard base64.
func (c Checkpoint) MarshalText() ([]byte, error) {
	return fmt.Appendf(c.SignedText(), "signature %s\n", base64.StdEncoding.EncodeToString(c.Signature)), nil
}

// UnmarshalText reads what MarshalText writes, and nothing else. It does not check the signature.
func (c *Checkpoint) UnmarshalText(text []byte) error {
	lines := strings.Split(string(text), "\n")
	if len(lines) != 7 || lines[6] != "" || lines[0] != checkpointDomain {
		return fmt.Errorf("%w: it has six lines, of which the first is %q", ErrCheckpoint, checkpointDomain)
	}
	var values [6]string
	for i, name := range []string{"cluster", "node", "sequence", "head", "signature"} {
		v, ok := strings.CutPrefix(lines[i+1], name+" ")
		if !ok {
			return fmt.Errorf("%w: line %d does not begin with %q", ErrCheckpoint, i+2, name)
		}
		values[i] = v
	}
	var (
		parsed Checkpoint
		err    error
	)
	if err = parsed.Cluster.UnmarshalText([]byte(values[0])); err != nil {
		return fmt.Errorf("%w: cluster: %w", ErrCheckpoint, err)
	}
	if err = parsed.Node.UnmarshalText([]byte(values[1])); err != nil {
		return fmt.Errorf("%w: node: %w", ErrCheckpoint, err)
	}
	if parsed.Sequence, err = strconv.ParseUint(values[2], 10, 64); err != nil {
		return fmt.Errorf("%w: %w", ErrCheckpoint, err)
	}
	head, err := hex.DecodeString(values[3])
	if err != nil || len(head) != len(parsed.Head) {
		return fmt.Errorf("%w: the head is %d hex digits", ErrCheckpoint, 2*len(parsed.Head))
	}
	parsed.Head = Hash(head)
	if parsed.Signature, err = base64.StdEncoding.Strict().DecodeString(values[4]); err != nil {
		return fmt.Errorf("%w: signature: %w", ErrCheckpoint, err)
	}
	if again, _ := parsed.MarshalText(); string(again) != string(text) {
		return fmt.Errorf("%w: it is not written in the canonical way", ErrCheckpoint)
	}
	*c = parsed
	return nil
}

// Verify checks the signature. It returns [ErrSignature].
func (c Checkpoint) Verify(key *ecdsa.PublicKey) error {
	digest := sha256.Sum256(c.SignedText())
	if !ecdsa.VerifyASN1(key, digest[:], c.Signature) {
		return fmt.Errorf("%w: node %s at record %d", ErrSignature, c.Node, c.Sequence)
	}
	return nil
}

// sign fills in the signature. The signer may be an HSM: it may take its time, and may hang.
func (c *Checkpoint) sign(signer crypto.Signer) error {
	digest := sha256.Sum256(c.SignedText())
	sig, err := signer.Sign(rand.Reader, digest[:], crypto.SHA256)
	if err != nil {
		return fmt.Errorf("signing the head of the audit journal: %w", err)
	}
	c.Signature = sig
	return nil
}

// ParsePublicKey reads the public key as it stands in a segment's header: an ECDSA P-256 key
// as SubjectPublicKeyInfo in DER.
func ParsePublicKey(der []byte) (*ecdsa.PublicKey, error) {
	parsed, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return nil, fmt.Errorf("public key of the audit journal: %w", err)
	}
	key, ok := parsed.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, fmt.Errorf("%w: public key of the audit journal is not ECDSA P-256", hierarchy.ErrInvalidArgument)
	}
	return key, nil
}
