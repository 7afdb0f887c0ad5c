package main

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/audit"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/state"
)

// Whoever adds a kind of command says here on whose word it is taken.
func TestEachKindOfCommandHasItsTerms(t *testing.T) {
	fields := (&commandpb.Command{}).ProtoReflect().Descriptor().Oneofs().ByName("body").Fields()
	for i := range fields.Len() {
		name := fields.Get(i).Name()
		if _, ok := forwarded[name]; !ok {
			t.Errorf("it is not said who may bring %s to the leader", name)
		}
	}
	if fields.Len() != len(forwarded) {
		t.Errorf("there are %d kinds of commands, and terms for %d", fields.Len(), len(forwarded))
	}
}

// fakeJournal takes records until it fails.
type fakeJournal struct {
	records []audit.Record
	fails   bool
}

func (j *fakeJournal) Write(_ context.Context, rs []audit.Record) (audit.Position, error) {
	if j.fails {
		return audit.Position{}, errors.New("the disk is gone")
	}
	j.records = append(j.records, rs...)
	return audit.Position{Sequence: uint64(len(j.records))}, nil
}

// A node speaks for itself in what is its own, and for an administrator in what one may ask for.
func TestWhatOtherNodesMayBring(t *testing.T) {
	origin := state.Node{ID: hierarchy.NodeID{ID: hierarchy.ID{1}}, Name: "eu-2", Region: eu}
	own, region := origin.ID.ID[:], origin.Region.ID[:]
	other := make([]byte, 16)
	other[0] = 9
	admin := &commandpb.Actor{NodeId: own, Uid: 7, Gid: 8, Pid: 9}
	voter := true
	s, tenant, key := newCopyOfState(t).state, acme.ID[:], orders.ID[:]

	for name, c := range map[string]struct {
		command *commandpb.Command
		record  string // of an administrator's command, or one that joins; "": none
		refused bool
	}{
		"its own seals":                       {command: &commandpb.Command{Body: &commandpb.Command_ReserveWraps{ReserveWraps: &commandpb.ReserveWraps{NodeId: own, RegionId: region}}}},
		"another node's seals":                {command: &commandpb.Command{Body: &commandpb.Command_ReserveWraps{ReserveWraps: &commandpb.ReserveWraps{NodeId: other, RegionId: region}}}, refused: true},
		"seals in another region":             {command: &commandpb.Command{Body: &commandpb.Command_ReserveWraps{ReserveWraps: &commandpb.ReserveWraps{NodeId: own, RegionId: other}}}, refused: true},
		"returns its own":                     {command: &commandpb.Command{Body: &commandpb.Command_ReturnWraps{ReturnWraps: &commandpb.ReturnWraps{NodeId: own, RegionId: region}}}},
		"returns another node's":              {command: &commandpb.Command{Body: &commandpb.Command_ReturnWraps{ReturnWraps: &commandpb.ReturnWraps{NodeId: other, RegionId: region}}}, refused: true},
		"its own uses":                        {command: &commandpb.Command{Body: &commandpb.Command_ReserveUses{ReserveUses: &commandpb.ReserveUses{NodeId: own}}}},
		"another node's uses":                 {command: &commandpb.Command{Body: &commandpb.Command_ReserveUses{ReserveUses: &commandpb.ReserveUses{NodeId: other}}}, refused: true},
		"its own journal":                     {command: &commandpb.Command{Body: &commandpb.Command_AnchorAudit{AnchorAudit: &commandpb.AnchorAudit{NodeId: own}}}},
		"another node's journal":              {command: &commandpb.Command{Body: &commandpb.Command_AnchorAudit{AnchorAudit: &commandpb.AnchorAudit{NodeId: other}}}, refused: true},
		"an administrator's journal":          {command: &commandpb.Command{Actor: admin, Body: &commandpb.Command_AnchorAudit{AnchorAudit: &commandpb.AnchorAudit{NodeId: own}}}, refused: true},
		"minted in its region":                {command: &commandpb.Command{Body: &commandpb.Command_RecordMinted{RecordMinted: &commandpb.RecordMinted{RegionId: region}}}},
		"minted in another region":            {command: &commandpb.Command{Body: &commandpb.Command_RecordMinted{RecordMinted: &commandpb.RecordMinted{RegionId: other}}}, refused: true},
		"starts a minting of its region":      {command: &commandpb.Command{Body: &commandpb.Command_RestartMinting{RestartMinting: &commandpb.RestartMinting{TenantId: tenant, KeyId: key, Version: 1}}}},
		"starts one of no version":            {command: &commandpb.Command{Body: &commandpb.Command_RestartMinting{RestartMinting: &commandpb.RestartMinting{TenantId: tenant, KeyId: key, Version: 2}}}, refused: true},
		"its own address":                     {command: &commandpb.Command{Body: &commandpb.Command_SetNode{SetNode: &commandpb.SetNode{NodeId: own}}}},
		"another node's address":              {command: &commandpb.Command{Body: &commandpb.Command_SetNode{SetNode: &commandpb.SetNode{NodeId: other}}}, refused: true},
		"promotes itself":                     {command: &commandpb.Command{Body: &commandpb.Command_SetNode{SetNode: &commandpb.SetNode{NodeId: own, Voter: &voter}}}, refused: true},
		"an administrator promotes it":        {command: &commandpb.Command{Actor: admin, Body: &commandpb.Command_SetNode{SetNode: &commandpb.SetNode{NodeId: own, Voter: &voter}}}, record: "node-promote"},
		"a run of its own":                    {command: &commandpb.Command{Body: &commandpb.Command_RegisterIncarnation{RegisterIncarnation: &commandpb.RegisterIncarnation{NodeId: own}}}},
		"another node's run":                  {command: &commandpb.Command{Body: &commandpb.Command_RegisterIncarnation{RegisterIncarnation: &commandpb.RegisterIncarnation{NodeId: other}}}, refused: true},
		"takes in a node":                     {command: &commandpb.Command{Body: &commandpb.Command_JoinNode{JoinNode: &commandpb.JoinNode{Node: &commandpb.Node{Name: "eu-3"}}}}, record: "node-join"},
		"a tick":                              {command: &commandpb.Command{Body: &commandpb.Command_Tick{Tick: &commandpb.Tick{}}}, refused: true},
		"a tick of an administrator":          {command: &commandpb.Command{Actor: admin, Body: &commandpb.Command_Tick{Tick: &commandpb.Tick{}}}, refused: true},
		"another minting node":                {command: &commandpb.Command{Actor: admin, Body: &commandpb.Command_SetMintingNode{SetMintingNode: &commandpb.SetMintingNode{}}}, refused: true},
		"a feature level":                     {command: &commandpb.Command{Actor: admin, Body: &commandpb.Command_RaiseFeatureLevel{RaiseFeatureLevel: &commandpb.RaiseFeatureLevel{}}}, refused: true},
		"a cluster":                           {command: &commandpb.Command{Actor: admin, Body: &commandpb.Command_InitCluster{InitCluster: &commandpb.InitCluster{}}}, refused: true},
		"nothing at all":                      {command: &commandpb.Command{Actor: admin}, refused: true},
		"a tenant":                            {command: &commandpb.Command{Actor: admin, Body: &commandpb.Command_CreateTenant{CreateTenant: &commandpb.CreateTenant{Name: "acme"}}}, record: "tenant-create"},
		"a tenant, of nobody":                 {command: &commandpb.Command{Body: &commandpb.Command_CreateTenant{CreateTenant: &commandpb.CreateTenant{Name: "acme"}}}, refused: true},
		"a tenant, asked for elsewhere":       {command: &commandpb.Command{Actor: &commandpb.Actor{NodeId: other}, Body: &commandpb.Command_CreateTenant{CreateTenant: &commandpb.CreateTenant{Name: "acme"}}}, refused: true},
		"disables":                            {command: &commandpb.Command{Actor: admin, Body: &commandpb.Command_SetTenantState{SetTenantState: &commandpb.SetTenantState{TenantId: tenant, State: commandpb.TenantState_TENANT_STATE_DISABLED}}}, record: "tenant-disable"},
		"enables":                             {command: &commandpb.Command{Actor: admin, Body: &commandpb.Command_SetTenantState{SetTenantState: &commandpb.SetTenantState{TenantId: tenant, State: commandpb.TenantState_TENANT_STATE_ENABLED}}}, record: "tenant-enable"},
		"compromises":                         {command: &commandpb.Command{Actor: admin, Body: &commandpb.Command_SetVersionState{SetVersionState: &commandpb.SetVersionState{TenantId: tenant, KeyId: key, Version: 1, Action: commandpb.VersionAction_VERSION_ACTION_COMPROMISE}}}, record: "version-compromise"},
		"does to a version what is not known": {command: &commandpb.Command{Actor: admin, Body: &commandpb.Command_SetVersionState{SetVersionState: &commandpb.SetVersionState{Action: 99}}}, refused: true},
	} {
		j := &fakeJournal{}
		g := gatekeeper{state: func() *state.State { return s }, journal: func() (journal, error) { return j, nil }, log: slog.New(slog.DiscardHandler)}
		done, err := g.admit(t.Context(), origin, c.command)
		if c.refused {
			if err == nil || len(j.records) != 1 || j.records[0].Outcome != audit.OutcomeDenied || !strings.Contains(j.records[0].Detail, "eu-2") {
				t.Errorf("%s: it is taken, or not recorded: %v, %+v", name, err, j.records)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		asked := len(j.records)
		if err := done(state.Result{}, nil); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		var kinds []string
		for _, r := range j.records {
			kinds = append(kinds, r.Kind+" "+string(r.Outcome))
			if !strings.Contains(r.Detail, "at node eu-2 ("+origin.ID.String()+")") {
				t.Errorf("%s: the record does not say who brought it: %s", name, r.Detail)
			}
			if who := (hierarchy.Principal{UID: 7, GID: 8, PID: 9}); c.command.Actor != nil && (r.Caller == nil || *r.Caller != who) {
				t.Errorf("%s: the record names %v", name, r.Caller)
			}
		}
		var want []string
		if c.record != "" {
			want = []string{c.record + " requested", c.record + " ok"}
		}
		if diff := cmp.Diff(want, kinds); diff != "" || c.record != "" && asked != 1 {
			t.Errorf("%s: records, %d of them before it is done (-want +got):\n%s", name, asked, diff)
		}
	}
}

// What cannot be recorded is not proposed; what became of it is told as it was.
func TestForwardedWithoutAJournal(t *testing.T) {
	s, tenant := newCopyOfState(t).state, acme.ID[:]
	origin := state.Node{ID: hierarchy.NodeID{ID: hierarchy.ID{1}}, Name: "eu-2"}
	c := &commandpb.Command{Actor: &commandpb.Actor{NodeId: origin.ID.ID[:]}, Body: &commandpb.Command_SetTenantState{SetTenantState: &commandpb.SetTenantState{TenantId: tenant}}}
	j := &fakeJournal{fails: true}
	g := gatekeeper{state: func() *state.State { return s }, journal: func() (journal, error) { return j, nil }, log: slog.New(slog.DiscardHandler)}
	if _, err := g.admit(t.Context(), origin, c); !errors.Is(err, hierarchy.ErrAuditUnavailable) {
		t.Errorf("without a journal: %v", err)
	}
	j.fails = false
	done, err := g.admit(t.Context(), origin, c)
	if err != nil {
		t.Fatal(err)
	}
	if err := done(state.Result{}, hierarchy.ErrNotFound); err != nil {
		t.Fatal(err)
	}
	if r := j.records[1]; r.Outcome != audit.OutcomeFailed || r.Code != "NOT_FOUND" || r.Of != 1 || r.TenantName != "acme" {
		t.Errorf("the record of a failure: %+v", r)
	}
	done, err = g.admit(t.Context(), origin, c)
	if err != nil {
		t.Fatal(err)
	}
	j.fails = true
	if done(state.Result{}, nil) == nil {
		t.Error("an outcome that is not recorded is not told")
	}
}
