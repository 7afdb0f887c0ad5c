package state

import (
	"bytes"
	"fmt"
	"time"
	"unicode/utf8"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/policy"
)

// Between the records as readers see them and as they stand in snapshots and in the hash. What
// comes from outside is checked here as far as one record alone can be wrong; what it refers to is
// checked where the rest is known.

func nanosOf(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func timeOf(nanos int64) time.Time {
	if nanos == 0 {
		return time.Time{}
	}
	return time.Unix(0, nanos).UTC()
}

// enum reads a number of the wire into one of ours, which has a byte: what does not fit becomes a
// value that nothing knows, instead of one that something does.
func enum[T ~uint8, E ~int32](e E) T {
	if e < 0 || e > 0xff {
		return 0xff
	}
	return T(e)
}

// idOf reads an identifier, which is never zero.
func idOf(what string, b []byte) (hierarchy.ID, error) {
	id, err := hierarchy.IDFromBytes(b)
	if err != nil {
		return id, fmt.Errorf("%s: %w", what, err)
	}
	if id.IsZero() {
		return id, fmt.Errorf("%w: %s is zero", hierarchy.ErrInvalidArgument, what)
	}
	return id, nil
}

func checkName(what, name string) error {
	if err := hierarchy.ValidateName(name); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// MaxReason is the longest reason, in bytes.
const MaxReason = 256

func checkReason(reason string) error {
	if len(reason) > MaxReason {
		return fmt.Errorf("%w: the reason has %d bytes, at most %d are allowed", hierarchy.ErrInvalidArgument, len(reason), MaxReason)
	}
	if !utf8.ValidString(reason) {
		return fmt.Errorf("%w: the reason is not UTF-8", hierarchy.ErrInvalidArgument)
	}
	return nil
}

// sealed sizes of what regions bring along. An ECDSA P-384 key in SubjectPublicKeyInfo has 120
// bytes; RSA-4096 has 550.
const (
	maxIdentity  = 1024
	maxSignature = 1024
)

func tenantToPB(t *Tenant) *commandpb.Tenant {
	m := &commandpb.Tenant{
		Id: t.ID.ID[:], Name: t.Name, State: commandpb.TenantState(t.State), StateReason: t.StateReason,
		MaxStaleness: int64(t.MaxStaleness), CreatedAt: nanosOf(t.CreatedAt), StateAt: nanosOf(t.StateAt), Limits: limitsToPB(t.Limits),
	}
	for i := range t.Placement {
		m.Placement = append(m.Placement, t.Placement[i].ID[:])
	}
	return m
}

func tenantFromPB(m *commandpb.Tenant) (*Tenant, error) {
	id, err := idOf("tenant ID", m.GetId())
	if err != nil {
		return nil, err
	}
	if err := checkName("tenant", m.GetName()); err != nil {
		return nil, err
	}
	t := &Tenant{
		ID: hierarchy.TenantID{ID: id}, Name: m.GetName(), State: enum[hierarchy.TenantState](m.GetState()), StateReason: m.GetStateReason(),
		MaxStaleness: time.Duration(m.GetMaxStaleness()), CreatedAt: timeOf(m.GetCreatedAt()), StateAt: timeOf(m.GetStateAt()),
	}
	if t.State < hierarchy.TenantEnabled || t.State > hierarchy.TenantDestroyed {
		return nil, fmt.Errorf("%w: tenant %s has no state that is known: %d", hierarchy.ErrInvalidArgument, t.Name, m.GetState())
	}
	if err := checkReason(t.StateReason); err != nil {
		return nil, err
	}
	if err := checkStaleness(t.MaxStaleness); err != nil {
		return nil, err
	}
	for i, b := range m.GetPlacement() {
		region, err := idOf("region in the placement of tenant "+t.Name, b)
		if err != nil {
			return nil, err
		}
		if i > 0 && bytes.Compare(m.GetPlacement()[i-1], b) >= 0 {
			return nil, fmt.Errorf("%w: the placement of tenant %s is not sorted", hierarchy.ErrInvalidArgument, t.Name)
		}
		t.Placement = append(t.Placement, hierarchy.RegionID{ID: region})
	}
	if len(t.Placement) == 0 {
		return nil, fmt.Errorf("%w: tenant %s has no region", hierarchy.ErrInvalidArgument, t.Name)
	}
	if t.Limits, err = limitsFromPB(m.GetLimits()); err != nil {
		return nil, fmt.Errorf("tenant %s: %w", t.Name, err)
	}
	return t, nil
}

// keyToPB leaves the versions out: in the hash each is a record of its own.
func keyToPB(k *Key) *commandpb.Key {
	return &commandpb.Key{
		TenantId: k.Tenant.ID[:], Id: k.ID.ID[:], Name: k.Name, CreatedAt: nanosOf(k.CreatedAt),
		RotateEvery: int64(k.RotateEvery), MinUnwrapVersion: k.MinUnwrapVersion,
	}
}

func wholeKeyToPB(k *Key) *commandpb.Key {
	m := keyToPB(k)
	for _, v := range k.Versions {
		m.Versions = append(m.Versions, versionToPB(v))
	}
	return m
}

func keyFromPB(m *commandpb.Key) (*Key, error) {
	k, err := keyPieceFromPB(m)
	if err != nil {
		return nil, err
	}
	if k.Versions[0].Number != 1 {
		return nil, fmt.Errorf("%w: key %s: version %d stands where 1 has to", hierarchy.ErrInvalidArgument, k.Name, k.Versions[0].Number)
	}
	if uint64(k.MinUnwrapVersion) > uint64(len(k.Versions)) {
		return nil, fmt.Errorf("%w: key %s has min_unwrap_version %d and %d versions", hierarchy.ErrInvalidArgument, k.Name, k.MinUnwrapVersion, len(k.Versions))
	}
	return k, nil
}

// keyPieceFromPB reads a key of which only a run of versions may be there.
func keyPieceFromPB(m *commandpb.Key) (*Key, error) {
	tenant, err := idOf("tenant ID of a key", m.GetTenantId())
	if err != nil {
		return nil, err
	}
	id, err := idOf("key ID", m.GetId())
	if err != nil {
		return nil, err
	}
	if err := checkName("key", m.GetName()); err != nil {
		return nil, err
	}
	k := &Key{
		ID: hierarchy.KeyID{ID: id}, Tenant: hierarchy.TenantID{ID: tenant}, Name: m.GetName(), CreatedAt: timeOf(m.GetCreatedAt()),
		RotateEvery: time.Duration(m.GetRotateEvery()), MinUnwrapVersion: m.GetMinUnwrapVersion(),
	}
	if err := checkRotateEvery(k.RotateEvery); err != nil {
		return nil, err
	}
	if n := len(m.GetVersions()); n == 0 || n > MaxVersions {
		return nil, fmt.Errorf("%w: key %s has %d versions, it must have 1 to %d", hierarchy.ErrInvalidArgument, k.Name, n, MaxVersions)
	}
	if k.MinUnwrapVersion < 1 || k.MinUnwrapVersion > MaxVersions {
		return nil, fmt.Errorf("%w: key %s has min_unwrap_version %d: it must be from 1 to %d", hierarchy.ErrInvalidArgument, k.Name, k.MinUnwrapVersion, MaxVersions)
	}
	active := 0 // versions that are active, or would be if they were resumed
	for i, vm := range m.GetVersions() {
		v, err := versionFromPB(vm)
		if err != nil {
			return nil, fmt.Errorf("key %s: %w", k.Name, err)
		}
		if v.Number < 1 || v.Number > MaxVersions {
			return nil, fmt.Errorf("%w: key %s has a version %d: they have the numbers 1 to %d", hierarchy.ErrInvalidArgument, k.Name, v.Number, MaxVersions)
		}
		if i > 0 && v.Number != k.Versions[i-1].Number+1 {
			return nil, fmt.Errorf("%w: key %s: version %d stands where %d has to", hierarchy.ErrInvalidArgument, k.Name, v.Number, k.Versions[i-1].Number+1)
		}
		if base(v) == hierarchy.Active {
			active++
		}
		if v.State == hierarchy.PreActive && i < len(m.GetVersions())-1 {
			return nil, fmt.Errorf("%w: key %s: version %d is pre-active and not the newest", hierarchy.ErrInvalidArgument, k.Name, v.Number)
		}
		k.Versions = append(k.Versions, v)
	}
	if active > 1 {
		return nil, fmt.Errorf("%w: key %s has %d active versions", hierarchy.ErrInvalidArgument, k.Name, active)
	}
	return k, nil
}

func versionToPB(v *Version) *commandpb.Version {
	m := &commandpb.Version{
		Number: v.Number, State: commandpb.VersionState(v.State), ResumeTo: commandpb.VersionState(v.ResumeTo), StateReason: v.StateReason,
		CreatedAt: nanosOf(v.CreatedAt), ActivatedAt: nanosOf(v.ActivatedAt), StateAt: nanosOf(v.StateAt),
		Attempt: v.Attempt, Cause: commandpb.RotationCause(v.Cause), Kdf: v.KDF,
	}
	for i := range v.Regions {
		r := &v.Regions[i]
		rm := &commandpb.RegionKey{RegionId: r.Region.ID[:], WrapsReserved: r.WrapsReserved}
		if r.Minted {
			rm.ObjectId, rm.CheckValue, rm.MintedAt = r.Object[:], r.Check[:], nanosOf(r.MintedAt)
		}
		for j := range r.Reservations {
			rm.Reservations = append(rm.Reservations, &commandpb.Reservation{NodeId: r.Reservations[j].Node.ID[:], Count: r.Reservations[j].Count})
		}
		m.Regions = append(m.Regions, rm)
	}
	return m
}

func versionFromPB(m *commandpb.Version) (*Version, error) {
	v := &Version{
		Number: m.GetNumber(), State: enum[hierarchy.VersionState](m.GetState()), ResumeTo: enum[hierarchy.VersionState](m.GetResumeTo()), StateReason: m.GetStateReason(),
		CreatedAt: timeOf(m.GetCreatedAt()), ActivatedAt: timeOf(m.GetActivatedAt()), StateAt: timeOf(m.GetStateAt()),
		Attempt: m.GetAttempt(), Cause: enum[RotationCause](m.GetCause()), KDF: m.GetKdf(),
	}
	bad := func(what string) error {
		return fmt.Errorf("%w: version %d %s", hierarchy.ErrInvalidArgument, v.Number, what)
	}
	switch {
	case v.State < hierarchy.PreActive || v.State > hierarchy.Destroyed:
		return nil, bad("has no state that is known")
	case (v.State == hierarchy.Suspended) != (v.ResumeTo != 0):
		return nil, bad("says where to resume to without being suspended, or the reverse")
	case v.ResumeTo != 0 && v.ResumeTo != hierarchy.Active && v.ResumeTo != hierarchy.Deactivated && v.ResumeTo != hierarchy.Compromised:
		return nil, bad("resumes to no state that is known")
	case v.Cause > CauseUse:
		return nil, bad("has no cause that is known")
	case len(m.GetRegions()) == 0:
		return nil, bad("has no region")
	}
	if err := checkReason(v.StateReason); err != nil {
		return nil, err
	}
	for i, rm := range m.GetRegions() {
		r, err := regionKeyFromPB(rm)
		if err != nil {
			return nil, fmt.Errorf("version %d: %w", v.Number, err)
		}
		if i > 0 && bytes.Compare(v.Regions[i-1].Region.ID[:], r.Region.ID[:]) >= 0 {
			return nil, bad("has regions that are not sorted")
		}
		v.Regions = append(v.Regions, r)
	}
	if b := base(v); (b == hierarchy.Active || b == hierarchy.Deactivated) && !v.minted() {
		return nil, bad("is in use, or would be if it were resumed, and not minted everywhere")
	}
	if v.State == hierarchy.PreActive && v.minted() {
		return nil, bad("is pre-active and minted everywhere")
	}
	return v, nil
}

func regionKeyFromPB(m *commandpb.RegionKey) (RegionKey, error) {
	region, err := idOf("region ID", m.GetRegionId())
	if err != nil {
		return RegionKey{}, err
	}
	r := RegionKey{Region: hierarchy.RegionID{ID: region}, WrapsReserved: m.GetWrapsReserved(), MintedAt: timeOf(m.GetMintedAt())}
	if r.WrapsReserved > MaxWraps {
		return RegionKey{}, fmt.Errorf("%w: %d seals are reserved, one key may seal %d times", hierarchy.ErrInvalidArgument, r.WrapsReserved, uint64(MaxWraps))
	}
	if len(m.GetObjectId()) > 0 {
		r.Minted = true
		if r.Object, r.Check, err = mintedObject(m.GetObjectId(), m.GetCheckValue()); err != nil {
			return RegionKey{}, err
		}
	} else if len(m.GetCheckValue()) > 0 || m.GetMintedAt() != 0 || r.WrapsReserved > 0 {
		return RegionKey{}, fmt.Errorf("%w: a region has a check value, a time or seals of an object that it does not have", hierarchy.ErrInvalidArgument)
	}
	var sum uint64
	for i, res := range m.GetReservations() {
		node, err := idOf("node of a reservation", res.GetNodeId())
		if err != nil {
			return RegionKey{}, err
		}
		if i > 0 && bytes.Compare(m.GetReservations()[i-1].GetNodeId(), res.GetNodeId()) >= 0 {
			return RegionKey{}, fmt.Errorf("%w: reservations are not sorted", hierarchy.ErrInvalidArgument)
		}
		if res.GetCount() == 0 || res.GetCount() > r.WrapsReserved-sum {
			return RegionKey{}, fmt.Errorf("%w: the nodes' reservations do not fit the total", hierarchy.ErrInvalidArgument)
		}
		sum += res.GetCount()
		r.Reservations = append(r.Reservations, Reservation{hierarchy.NodeID{ID: node}, res.GetCount()})
	}
	return r, nil
}

func mintedObject(object, check []byte) (id hierarchy.ObjectID, v hierarchy.CheckValue, err error) {
	if len(object) != len(id) || len(check) != len(v) {
		return id, v, fmt.Errorf("%w: an object ID has %d bytes and a check value %d, got %d and %d", hierarchy.ErrInvalidArgument, len(id), len(v), len(object), len(check))
	}
	return hierarchy.ObjectID(object), hierarchy.CheckValue(check), nil
}

func serviceToPB(s *Service) *commandpb.Service {
	return &commandpb.Service{Name: s.Name, Uid: s.UID, Gid: s.GID, CreatedAt: nanosOf(s.CreatedAt)}
}

func serviceFromPB(m *commandpb.Service) (*Service, error) {
	if err := checkName("service", m.GetName()); err != nil {
		return nil, err
	}
	if m.Uid == nil && m.Gid == nil {
		return nil, fmt.Errorf("%w: service %s needs a uid, a gid, or both: else every caller would be it", hierarchy.ErrInvalidArgument, m.GetName())
	}
	return &Service{Name: m.GetName(), UID: clonePtr(m.Uid), GID: clonePtr(m.Gid), CreatedAt: timeOf(m.GetCreatedAt())}, nil
}

func clonePtr[T any](p *T) *T {
	if p == nil {
		return nil
	}
	v := *p
	return &v
}

func ruleToPB(r *policy.Rule) *commandpb.Rule {
	m := &commandpb.Rule{Service: r.Service, Pattern: r.Pattern.String(), Ops: uint32(r.Ops), RequireReason: r.RequireReason, Limits: limitsToPB(r.Limits)}
	for _, q := range r.Required {
		qm := &commandpb.RequiredContext{Key: q.Key}
		if !q.AnyValue {
			qm.Value = &q.Value
		}
		m.RequiredContext = append(m.RequiredContext, qm)
	}
	return m
}

func ruleFromPB(m *commandpb.Rule) (*policy.Rule, error) {
	pattern, err := policy.ParsePattern(m.GetPattern())
	if err != nil {
		return nil, err
	}
	if m.GetOps() > 0xff {
		return nil, fmt.Errorf("%w: a rule names operations that are not known", hierarchy.ErrInvalidArgument)
	}
	r := &policy.Rule{Service: m.GetService(), Pattern: pattern, Ops: hierarchy.Ops(m.GetOps()), RequireReason: m.GetRequireReason()}
	for _, qm := range m.GetRequiredContext() {
		r.Required = append(r.Required, policy.Requirement{Key: qm.GetKey(), AnyValue: qm.Value == nil, Value: qm.GetValue()})
	}
	if r.Limits, err = limitsFromPB(m.GetLimits()); err != nil {
		return nil, fmt.Errorf("a rule for %s: %w", r.Pattern, err)
	}
	if err := policy.ValidateRule(*r); err != nil {
		return nil, err
	}
	return r, nil
}

func anchorToPB(a *Anchor) *commandpb.Anchor {
	return &commandpb.Anchor{NodeId: a.Node.ID[:], Sequence: a.Sequence, Head: a.Head[:], Signature: a.Signature, At: nanosOf(a.At)}
}

func anchorFromPB(m *commandpb.Anchor) (*Anchor, error) {
	node, err := idOf("node of an audit anchor", m.GetNodeId())
	if err != nil {
		return nil, err
	}
	a := &Anchor{Node: hierarchy.NodeID{ID: node}, Sequence: m.GetSequence(), Signature: bytes.Clone(m.GetSignature()), At: timeOf(m.GetAt())}
	if len(m.GetHead()) != len(a.Head) {
		return nil, fmt.Errorf("%w: the head of an audit journal has %d bytes, got %d", hierarchy.ErrInvalidArgument, len(a.Head), len(m.GetHead()))
	}
	a.Head = [32]byte(m.GetHead())
	if len(a.Signature) == 0 || len(a.Signature) > maxSignature {
		return nil, fmt.Errorf("%w: the signature of an audit anchor has %d bytes, it must have 1 to %d", hierarchy.ErrInvalidArgument, len(a.Signature), maxSignature)
	}
	return a, nil
}
