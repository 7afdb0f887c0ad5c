package main

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/audit"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/state"
)

// What a leader takes from another node. Nobody's word is taken for more than it has to be: a node speaks
// for itself in what is its own, brings what an administrator asked for there under that administrator's
// name, and leaves to the leader what is the leader's.

// asked is a command, and who brings it.
type asked struct {
	origin  state.Node
	command *commandpb.Command
	state   *state.State
}

// terms say on whose word a kind of command is taken. The zero value: on nobody's, it is the leader's own.
type terms struct {
	// own tells whether the node may bring the command for itself. Nil: it may not.
	own func(asked) bool
	// admin names the command for the journal, as it is named where it was asked for. Nil: no
	// administrator asks for it.
	admin func(asked) audit.Record
}

// forwarded has each kind of command, by its field in commandpb.Command.
var forwarded = map[protoreflect.Name]terms{
	"init_cluster":        {},
	"tick":                {},
	"set_minting_node":    {},
	"raise_feature_level": {},
	"retire_tombstone":    {},

	"reserve_wraps": {own: func(a asked) bool {
		c := a.command.GetReserveWraps()
		return a.isOrigin(c.GetNodeId()) && a.isRegion(c.GetRegionId())
	}},
	"return_wraps": {own: func(a asked) bool {
		c := a.command.GetReturnWraps()
		return a.isOrigin(c.GetNodeId()) && a.isRegion(c.GetRegionId())
	}},
	"reserve_uses":  {own: func(a asked) bool { return a.isOrigin(a.command.GetReserveUses().GetNodeId()) }},
	"anchor_audit":  {own: func(a asked) bool { return a.isOrigin(a.command.GetAnchorAudit().GetNodeId()) }},
	"record_minted": {own: func(a asked) bool { return a.isRegion(a.command.GetRecordMinted().GetRegionId()) }},
	"restart_minting": {own: func(a asked) bool {
		c := a.command.GetRestartMinting()
		k, ok := a.state.Key(tenantID(c.GetTenantId()), keyID(c.GetKeyId()))
		if !ok {
			return false
		}
		v, ok := k.Version(c.GetVersion())
		if !ok {
			return false
		}
		_, here := v.Region(a.origin.Region)
		return here
	}},

	"register_incarnation": {own: func(a asked) bool { return a.isOrigin(a.command.GetRegisterIncarnation().GetNodeId()) }},
	// Any node may run the wait for a fence, and says when it is over; the leader has then looked for itself.
	"complete_fence": {own: func(asked) bool { return true }},

	"create_tenant": {admin: func(a asked) audit.Record {
		return audit.Record{Kind: "tenant-create", TenantName: a.command.GetCreateTenant().GetName()}
	}},
	"set_tenant_state": {admin: func(a asked) audit.Record {
		c := a.command.GetSetTenantState()
		r := a.ofTenant("tenant-enable", c.GetTenantId())
		if c.GetState() != commandpb.TenantState_TENANT_STATE_ENABLED {
			r.Kind = "tenant-disable"
		}
		r.Reason = c.GetReason()
		return r
	}},
	"set_tenant": {admin: func(a asked) audit.Record { return a.ofTenant("tenant-set", a.command.GetSetTenant().GetTenantId()) }},
	"create_key": {admin: func(a asked) audit.Record {
		c := a.command.GetCreateKey()
		r := a.ofTenant("key-create", c.GetTenantId())
		r.Key = c.GetName()
		return r
	}},
	"rotate_key": {admin: func(a asked) audit.Record {
		c := a.command.GetRotateKey()
		return a.ofKey("key-rotate", c.GetTenantId(), c.GetKeyId())
	}},
	"set_key": {admin: func(a asked) audit.Record {
		c := a.command.GetSetKey()
		return a.ofKey("key-set", c.GetTenantId(), c.GetKeyId())
	}},
	"set_version_state": {admin: func(a asked) audit.Record {
		c := a.command.GetSetVersionState()
		r := a.ofKey(versionKinds[c.GetAction()], c.GetTenantId(), c.GetKeyId())
		r.Version, r.Reason = c.GetVersion(), c.GetReason()
		return r
	}},
	"create_service": {admin: func(a asked) audit.Record {
		return audit.Record{Kind: "service-create", Service: a.command.GetCreateService().GetName()}
	}},
	"delete_service": {admin: func(a asked) audit.Record {
		return audit.Record{Kind: "service-delete", Service: a.command.GetDeleteService().GetName()}
	}},
	"allow_policy": {admin: func(a asked) audit.Record {
		rule := a.command.GetAllowPolicy().GetRule()
		return audit.Record{Kind: "policy-allow", Service: rule.GetService(), Detail: rule.GetPattern()}
	}},
	"revoke_policy": {admin: func(a asked) audit.Record {
		c := a.command.GetRevokePolicy()
		return audit.Record{Kind: "policy-revoke", Service: c.GetService(), Detail: c.GetPattern()}
	}},

	"invite_node": {admin: func(a asked) audit.Record {
		i := a.command.GetInviteNode().GetInvitation()
		return audit.Record{Kind: "node-invite", Detail: fmt.Sprintf("node=%s region=%s voter=%t", i.GetNode(), i.GetRegion(), i.GetVoter())}
	}},
	// Whoever was asked to take a node in brings this. The proof in it is what allows it.
	joinNode: {own: func(asked) bool { return true }},
	"set_node": {
		// It has moved, or its address was corrected.
		own: func(a asked) bool {
			c := a.command.GetSetNode()
			return a.isOrigin(c.GetNodeId()) && c.Voter == nil
		},
		admin: func(a asked) audit.Record {
			c := a.command.GetSetNode()
			kind := "node-demote"
			if c.GetVoter() {
				kind = "node-promote"
			}
			return audit.Record{Kind: kind, Detail: "node=" + a.nodeName(c.GetNodeId())}
		},
	},
	"remove_node": {admin: func(a asked) audit.Record {
		return audit.Record{Kind: "node-remove", Detail: "node=" + a.nodeName(a.command.GetRemoveNode().GetNodeId())}
	}},
	"restore_records": {admin: func(a asked) audit.Record {
		return audit.Record{Kind: "snapshot-restore", Detail: fmt.Sprintf("records=%d", len(a.command.GetRestoreRecords().GetRecords()))}
	}},
}

const joinNode = "join_node"

var versionKinds = map[commandpb.VersionAction]string{
	commandpb.VersionAction_VERSION_ACTION_SUSPEND:    "version-suspend",
	commandpb.VersionAction_VERSION_ACTION_RESUME:     "version-resume",
	commandpb.VersionAction_VERSION_ACTION_COMPROMISE: "version-compromise",
}

// judge says whether the command is taken, and under which record: nil, where the node speaks for itself
// and has the record, if there is one.
func (a asked) judge() (*audit.Record, error) {
	kind := kindOf(a.command)
	t, known := forwarded[kind]
	actor := a.command.GetActor()
	switch {
	case !known || t.own == nil && t.admin == nil:
		return nil, fmt.Errorf("%w: %s is for the leader alone, and not for node %s to ask", hierarchy.ErrPermissionDenied, kind, a.origin.Name)
	case actor == nil && kind == joinNode:
		n := a.command.GetJoinNode().GetNode()
		return &audit.Record{Kind: "node-join", Detail: "node=" + n.GetName()}, nil
	case actor == nil:
		if t.own == nil || !t.own(a) {
			return nil, fmt.Errorf("%w: node %s may not ask for this %s: it is not its own, and no administrator's", hierarchy.ErrPermissionDenied, a.origin.Name, kind)
		}
		return nil, nil
	case t.admin == nil:
		return nil, fmt.Errorf("%w: no administrator may ask for %s", hierarchy.ErrPermissionDenied, kind)
	case !a.isOrigin(actor.GetNodeId()):
		return nil, fmt.Errorf("%w: node %s brings what was asked for at another node", hierarchy.ErrPermissionDenied, a.origin.Name)
	}
	r := t.admin(a)
	if r.Kind == "" {
		return nil, fmt.Errorf("%w: %s without an action that is known", hierarchy.ErrInvalidArgument, kind)
	}
	r.Caller = &hierarchy.Principal{UID: actor.GetUid(), GID: actor.GetGid(), PID: actor.GetPid()}
	return &r, nil
}

func kindOf(c *commandpb.Command) protoreflect.Name {
	m := c.ProtoReflect()
	if f := m.WhichOneof(m.Descriptor().Oneofs().ByName("body")); f != nil {
		return f.Name()
	}
	return ""
}

func (a asked) isOrigin(node []byte) bool   { return string(node) == string(a.origin.ID.ID[:]) }
func (a asked) isRegion(region []byte) bool { return string(region) == string(a.origin.Region.ID[:]) }

func (a asked) nodeName(id []byte) string {
	if n, ok := a.state.Node(hierarchy.NodeID{ID: rawID(id)}); ok {
		return n.Name
	}
	return rawID(id).String()
}

func (a asked) ofTenant(kind string, tenant []byte) audit.Record {
	r := audit.Record{Kind: kind}
	if t, ok := a.state.Tenant(tenantID(tenant)); ok {
		r.Tenant, r.TenantName = t.ID, t.Name
	}
	return r
}

func (a asked) ofKey(kind string, tenant, key []byte) audit.Record {
	r := a.ofTenant(kind, tenant)
	if k, ok := a.state.Key(tenantID(tenant), keyID(key)); ok {
		r.Key = k.Name
	}
	return r
}

// rawID is the zero ID for what is none, which nothing has.
func rawID(b []byte) hierarchy.ID {
	id, _ := hierarchy.IDFromBytes(b)
	return id
}

func tenantID(b []byte) hierarchy.TenantID { return hierarchy.TenantID{ID: rawID(b)} }
func keyID(b []byte) hierarchy.KeyID       { return hierarchy.KeyID{ID: rawID(b)} }

// gatekeeper judges what other nodes bring to this one while it leads, and keeps the record of it.
type gatekeeper struct {
	state   func() *state.State
	journal func() (journal, error)
	log     *slog.Logger
}

// recordTimeout is how long the record of an outcome may take, whatever became of who asked.
const recordTimeout = 10 * time.Second

// admit is [cluster.Config]'s Forwarded. What an administrator asked for, or a node that joins, has a record
// here before it is proposed, as it has where it was asked for: who breaks into one node cannot take
// the only one away.
func (g gatekeeper) admit(ctx context.Context, origin state.Node, c *commandpb.Command) (func(state.Result, error) error, error) {
	nothing := func(state.Result, error) error { return nil }
	s := g.state()
	r, refusal := asked{origin, c, s}.judge()
	if refusal == nil && r == nil {
		return nothing, nil
	}
	to, err := g.journal()
	if err != nil {
		return nil, err
	}
	if refusal != nil {
		g.log.Warn("a node asks for what it may not: its version is wrong, or somebody else has its key", "origin", origin.Name, "error", refusal)
		r = &audit.Record{Kind: "forwarded-command", Detail: string(kindOf(c))}
	}
	r.Epoch, r.Outcome = s.Epoch(), audit.OutcomeRequested
	r.Detail = strings.TrimSuffix(fmt.Sprintf("at node %s (%s); command %s; %s", origin.Name, origin.ID, rawID(c.GetId()), r.Detail), "; ")
	if refusal != nil {
		r.Outcome, r.Code = audit.OutcomeDenied, hierarchy.Code(refusal)
	}
	requested, err := to.Write(ctx, []audit.Record{*r})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", hierarchy.ErrAuditUnavailable, err)
	}
	if refusal != nil {
		return nil, refusal
	}
	return func(res state.Result, err error) error {
		if err == nil {
			err = res.Err
		}
		r.Of, r.Outcome = requested.Sequence, audit.OutcomeOK
		if err != nil {
			r.Outcome, r.Code = audit.OutcomeFailed, hierarchy.Code(err)
		}
		// Who asked may be gone by now.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTimeout)
		defer cancel()
		_, recordErr := to.Write(ctx, []audit.Record{*r})
		return recordErr
	}, nil
}
