package state

import (
	"crypto/sha256"
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
)

// How long the outcome of a command is remembered, so that a retry hears what the first try was
// told: for a day of cluster time, but no more than so many.
const (
	outcomeLife = 24 * time.Hour
	maxOutcomes = 1 << 16
)

// outcome is what a command answered.
type outcome struct {
	id     hierarchy.CommandID
	intent [32]byte
	stamp  int64
	index  uint64
	code   string // empty: it took effect
	text   string // a refusal's words, for people: nothing may depend on them
}

// maxOutcomeText bounds what is kept of a refusal's words, in bytes: they may quote the caller.
const maxOutcomeText = 1024

// codeOf names a refusal. An error of no code would be a mistake of ours, and is no reason to stop a
// cluster.
func codeOf(err error) string {
	code := hierarchy.Code(err)
	if _, ok := hierarchy.ErrorOfCode(code); !ok {
		return hierarchy.Code(hierarchy.ErrInvalidArgument)
	}
	return code
}

// replay is a refusal that is told again.
type replay struct {
	sentinel error
	text     string
}

func (r *replay) Error() string { return r.text }
func (r *replay) Unwrap() error { return r.sentinel }

func (o *outcome) err() error {
	if o.code == "" {
		return nil
	}
	sentinel, _ := hierarchy.ErrorOfCode(o.code)
	return &replay{sentinel, o.text}
}

// Decided tells whether a command's outcome is remembered: then the command, proposed again, answers
// as it did and changes nothing.
func (s *State) Decided(id hierarchy.CommandID) bool {
	_, ok := s.outcomeByID.get(id)
	return ok
}

// remembered tells whether a command's outcome is kept. It is not for what the cluster proposes by
// itself all the time and may safely do twice: a tick and an anchor say the same again, what is
// minted is recorded once, what was waited for is over for good, and a block that is reserved twice is only wasted. Returning seals twice
// would let one key seal too often, so that is kept.
func remembered(c *commandpb.Command) bool {
	switch c.GetBody().(type) {
	case *commandpb.Command_Tick, *commandpb.Command_AnchorAudit, *commandpb.Command_RecordMinted,
		*commandpb.Command_ReserveWraps, *commandpb.Command_ReserveUses,
		*commandpb.Command_CompleteFence, *commandpb.Command_RetireTombstone:
		return false
	}
	return true
}

// remember keeps the outcome, and no error means that the command took effect.
func (d *draft) remember(o *outcome, err error) {
	if err != nil {
		o.code, o.text = codeOf(err), strings.ToValidUTF8(err.Error(), "?")
		if len(o.text) > maxOutcomeText {
			o.text = strings.ToValidUTF8(o.text[:maxOutcomeText], "") + "..."
		}
	}
	d.putOutcome(o)
	if d.outcomes.Len() > maxOutcomes {
		_, oldest, _ := d.outcomes.Root().Minimum()
		d.deleteOutcome(oldest)
	}
}

// forget drops what is older than [outcomeLife], in the order of the log. What is left over is
// remembered somewhat longer, which does no harm.
func (d *draft) forget() {
	for range maxForgotten {
		_, oldest, ok := d.outcomes.Root().Minimum()
		if !ok || d.stamp-oldest.stamp <= int64(outcomeLife) {
			return
		}
		d.deleteOutcome(oldest)
	}
}

// intent is the hash of what a command asks for. Identifiers that the proposer drew and the
// version that it happened to know are left out, since a retry through another node, or later,
// brings others and is still the same request.
func intent(c *commandpb.Command) [32]byte {
	asked := &commandpb.Command{Body: c.GetBody()}
	switch b := c.GetBody().(type) {
	case *commandpb.Command_CreateTenant:
		m := proto.CloneOf(b.CreateTenant)
		m.TenantId = nil
		asked.Body = &commandpb.Command_CreateTenant{CreateTenant: m}
	case *commandpb.Command_CreateKey:
		m := proto.CloneOf(b.CreateKey)
		m.KeyId = nil
		asked.Body = &commandpb.Command_CreateKey{CreateKey: m}
	case *commandpb.Command_RotateKey:
		m := proto.CloneOf(b.RotateKey)
		m.AfterVersion = 0
		asked.Body = &commandpb.Command_RotateKey{RotateKey: m}
	}
	return sha256.Sum256(encode(asked))
}

func outcomeToPB(o *outcome) *commandpb.Outcome {
	return &commandpb.Outcome{
		CommandId: o.id.ID[:], CommandHash: o.intent[:], Stamp: o.stamp, Index: o.index, ErrorCode: o.code, ErrorMessage: o.text,
	}
}

// hashedOutcome is what the hash covers of an outcome: all but a refusal's words. These are the version's
// own, and come in part from Go's library. If the hash covered them, a version that words a refusal
// otherwise would differ from the ticks in an old log and never start, and from its peers in a cluster
// that is being upgraded. In a snapshot they are covered by the hash over its bytes.
func hashedOutcome(o *outcome) []byte {
	m := outcomeToPB(o)
	m.ErrorMessage = ""
	return record(hashOutcome, m)
}

func outcomeFromPB(m *commandpb.Outcome) (*outcome, error) {
	id, err := idOf("idempotency ID of an outcome", m.GetCommandId())
	if err != nil {
		return nil, err
	}
	o := &outcome{id: hierarchy.CommandID{ID: id}, stamp: m.GetStamp(), index: m.GetIndex(), code: m.GetErrorCode(), text: m.GetErrorMessage()}
	if len(m.GetCommandHash()) != len(o.intent) {
		return nil, fmt.Errorf("%w: the hash of a command has %d bytes, got %d", hierarchy.ErrInvalidArgument, len(o.intent), len(m.GetCommandHash()))
	}
	o.intent = [32]byte(m.GetCommandHash())
	if _, known := hierarchy.ErrorOfCode(o.code); !known && o.code != "" {
		return nil, fmt.Errorf("%w: an outcome has the code %q, which is not known", hierarchy.ErrInvalidArgument, o.code)
	}
	if len(o.text) > maxOutcomeText+len("...") {
		return nil, fmt.Errorf("%w: the words of an outcome have %d bytes", hierarchy.ErrInvalidArgument, len(o.text))
	}
	return o, nil
}
