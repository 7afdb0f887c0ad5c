package cluster

import (
	"context"
	"errors"
	"fmt"

	"github.com/kekd/kekd/cluster/peer"
	"github.com/kekd/kekd/cluster/peerpb"
	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/state"
)

// Applicant is a node that wants to become a member.
type Applicant struct {
	Token *peer.JoinToken
	// Node is its ID, drawn at random before the first try and the same at each: so that a try that was
	// interrupted after the cluster had taken it is gone on with.
	Node hierarchy.NodeID
	// Region is the ID that its region gets if the node is the first of it.
	Region hierarchy.RegionID
	// Identity is the SubjectPublicKeyInfo (DER) of the region's token, or of the node's own key where
	// the region has none.
	Identity []byte
	// KDF is the profile of bridges that the token can agree; empty: none.
	KDF   string
	Peers Peers
}

// Membership is what an applicant got.
type Membership struct {
	Cluster hierarchy.ClusterID
	Node    hierarchy.NodeID
	Region  hierarchy.RegionID
	Role    hierarchy.RegionRole
	told    introductions
}

// Apply asks the members that the token names, one after the other, until one answers. An error that is not
// one of reaching them is the cluster's own refusal. It may be repeated.
func Apply(ctx context.Context, a Applicant) (*Membership, error) {
	var errs []error
	for _, address := range a.Token.Addresses {
		m, err := a.ask(ctx, address)
		if err == nil {
			return m, nil
		}
		if refusal := (*refusal)(nil); errors.As(err, &refusal) && !errors.Is(err, hierarchy.ErrStale) {
			return nil, err
		}
		errs = append(errs, fmt.Errorf("%s: %w", address, err))
	}
	return nil, fmt.Errorf("no member of the cluster took this node in: %w", errors.Join(errs...))
}

func (a Applicant) ask(ctx context.Context, address string) (*Membership, error) {
	conn, err := peer.DialJoin(ctx, address, a.Peers.Files, a.Token, a.Peers.Name)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	proof := state.Proof(a.Token.Secret[:])
	answer, err := peerpb.NewPeerClient(conn).Join(ctx, &peerpb.JoinRequest{
		InvitationId: a.Token.Invitation[:], Proof: proof[:], NodeId: a.Node.ID[:], RegionId: a.Region.ID[:],
		Name: a.Peers.Name, Region: a.Token.Region, Address: a.Peers.address(), Identity: a.Identity, Kdf: a.KDF,
	})
	if err != nil {
		return nil, err
	}
	if err := refused(answer.GetErrorCode(), answer.GetErrorMessage()); err != nil {
		return nil, err
	}
	region, err := hierarchy.IDFromBytes(answer.GetRegionId())
	if err != nil {
		return nil, fmt.Errorf("the answer's region ID: %w", err)
	}
	m := &Membership{Cluster: a.Token.Cluster, Node: a.Node, Region: hierarchy.RegionID{ID: region}, told: introductionsOf(answer.GetIndex(), answer.GetMembers())}
	epoch := peer.Epoch{Number: answer.GetEpoch()}
	copy(epoch.Statement[:], answer.GetEpochStatement())
	m.told = m.told.in(epoch)
	if m.Role, err = hierarchy.ParseRegionRole(answer.GetRole()); err != nil {
		return nil, err
	}
	return m, nil
}

// Join makes the directory of a node that has become a member: with a store that is empty, and with who votes, so
// that it knows from whom to take the log. It is [hierarchy.ErrAlreadyExists] if anything is there. One
// that is interrupted leaves nothing that counts, and can be repeated.
func Join(cfg Config, m *Membership) error {
	cfg = cfg.withDefaults()
	voters := 0
	for _, i := range m.told.Members {
		if i.Voter {
			voters++
		}
	}
	if voters == 0 {
		return fmt.Errorf("%w: it names no voter to begin with", hierarchy.ErrInvalidArgument)
	}
	id := identity{Format: 1, Cluster: m.Cluster, Node: m.Node, Joined: true}
	return create(cfg, id, func(dir string) error {
		s, err := openStores(dir, cfg)
		if err != nil {
			return err
		}
		// Raft's own first term is 1; a term is what says that the store was made.
		err = errors.Join(s.stable.SetUint64([]byte(keyCurrentTerm), 0), s.close())
		if err != nil {
			return err
		}
		return writeIntroductions(dir, m.told)
	})
}
