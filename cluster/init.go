package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/hashicorp/raft"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/state"
)

// Init makes a cluster of one node in cfg.Dir, which must be empty or not exist. The command is the
// first of the cluster's log, so that a node of it is never without one. It is
// [hierarchy.ErrAlreadyExists] if anything is there, and [ErrInUse] if a node runs there.
//
// An Init that is interrupted leaves nothing that counts, and can be repeated.
func Init(cfg Config, first *commandpb.InitCluster) error {
	cfg = cfg.withDefaults()
	if err := cfg.check(); err != nil {
		return err
	}
	command := &commandpb.Command{
		Format: state.Format,
		Id:     newCommandID(),
		Stamp:  cfg.Wall().UnixNano(),
		Body:   &commandpb.Command_InitCluster{InitCluster: first},
	}
	made, res := state.Apply(state.New(), state.Meta{Index: 1}, command)
	if res.Err != nil {
		return res.Err
	}
	id := identity{Format: 1, Cluster: made.ClusterID(), Node: hierarchy.NodeID{ID: hierarchy.ID(first.GetNode().GetId())}}
	data, err := command.MarshalVT()
	if err != nil {
		return err
	}

	return create(cfg, id, func(dir string) error {
		s, err := openStores(dir, cfg)
		if err != nil {
			return err
		}
		return errors.Join(bootstrap(cfg, s, id, data), s.close())
	})
}

// create makes a node's directory, with what fill puts into it, all at once.
func create(cfg Config, id identity, fill func(dir string) error) error {
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return err
	}
	if err := mustBeEmpty(cfg.Dir); err != nil {
		return err
	}
	held, err := lock(cfg.Dir)
	if err != nil {
		return err
	}
	defer held.Close()
	if err := mustBeEmpty(cfg.Dir); err != nil { // another Init may have been quicker
		return err
	}

	building := filepath.Join(cfg.Dir, unfinished)
	if err := os.RemoveAll(building); err != nil {
		return err
	}
	if err := os.Mkdir(building, 0o700); err != nil {
		return err
	}
	if err := build(building, id, fill); err != nil {
		return errors.Join(fmt.Errorf("make the node in %s: %w", building, err), os.RemoveAll(building))
	}
	// Before it counts: no node is ever without its mark. A try that ends here is made again with the same entries.
	if err := markFirst(cfg, building); err != nil {
		return errors.Join(err, os.RemoveAll(building))
	}
	if err := os.Rename(building, filepath.Join(cfg.Dir, raftDir)); err != nil {
		return err
	}
	return errors.Join(syncDir(cfg.Dir), syncDir(filepath.Dir(cfg.Dir)))
}

// markFirst marks where a node begins.
func markFirst(cfg Config, dir string) error {
	if cfg.Marks == nil {
		return nil
	}
	s, err := openStores(dir, cfg)
	if err != nil {
		return err
	}
	m, err := s.position()
	if err := errors.Join(err, s.close()); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), markTimeout)
	defer cancel()
	if err := cfg.Marks.SetMark(ctx, m); err != nil {
		return fmt.Errorf("mark that the node begins: %w", err)
	}
	return nil
}

// mustBeEmpty refuses a directory in which anything is but what an interrupted Init leaves.
func mustBeEmpty(dir string) error {
	there, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var names []string
	for _, e := range there {
		if e.Name() == raftDir {
			return fmt.Errorf("%w: %s holds a node of a cluster", hierarchy.ErrAlreadyExists, dir)
		}
		if e.Name() != lockFile && e.Name() != unfinished {
			names = append(names, e.Name())
		}
	}
	if len(names) > 0 {
		return fmt.Errorf("%w: %s is not empty, it holds %s", hierarchy.ErrAlreadyExists, dir, strings.Join(names, ", "))
	}
	return nil
}

func build(dir string, id identity, fill func(dir string) error) error {
	if err := fill(dir); err != nil {
		return err
	}
	if err := writeIdentity(dir, id); err != nil {
		return err
	}
	return syncDir(dir)
}

// bootstrap makes the stores of a cluster of one: raft's configuration is entry 1 and the first command
// entry 2, of the term that bootstrapping sets. The only voter has them, so they are as good as
// committed, and are when it is first elected.
func bootstrap(cfg Config, s *stores, id identity, command []byte) error {
	servers := raft.Configuration{Servers: []raft.Server{{
		Suffrage: raft.Voter, ID: serverID(id.Node), Address: serverAddress(id.Node),
	}}}
	_, nowhere := raft.NewInmemTransport(serverAddress(id.Node)) // bootstrapping sends nothing
	if err := raft.BootstrapCluster(cfg.raft(id.Node, nil), s.log, s.stable, s.snaps, nowhere, servers); err != nil {
		return err
	}
	last := new(raft.Log)
	if err := s.log.GetLog(1, last); err != nil {
		return err
	}
	return s.log.StoreLog(&raft.Log{Index: 2, Term: last.Term, Type: raft.LogCommand, Data: command, AppendedAt: cfg.Wall()})
}
