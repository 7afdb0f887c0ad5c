package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/BurntSushi/toml"

	"github.com/kekd/kekd/softhsm-tests/devcluster"
	"github.com/kekd/kekd/softhsm-tests/faultmodule"
)

const (
	// networkCeiling is what a token does in a second that takes 1 ms and does 16 things at once.
	networkCeiling = 16_000
	// networkSessions are more than that: while one session's answer is on its way, another asks.
	networkSessions = 24
)

// network is a line that no weather touches: the token is the limit.
var network = fmt.Sprintf("network HSM, %d/s at most", networkCeiling)

func measureNetwork(ctx context.Context, o options, dir string, add func(string, measurement)) (err error) {
	d, stop, err := overNetwork(ctx, o, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	l := d.batch(1024, 4)
	for range o.rounds {
		m, err := l.run(ctx, d, 4*o.round) // a round of the others has few calls here
		if err != nil {
			return err
		}
		add(network, m)
	}
	return nil
}

// overNetwork is the daemon with its token behind the fault module, as a network HSM.
func overNetwork(ctx context.Context, o options, dir string) (d *daemon, stop func() error, err error) {
	path := filepath.Join(dir, "network")
	control := filepath.Join(dir, "faults")
	for name, value := range map[string]string{"KEKD_FAULT_CONTROL": control, "KEKD_FAULT_COUNTERS": filepath.Join(dir, "fault-counters")} {
		if err := os.Setenv(name, value); err != nil {
			return nil, nil, err
		}
	}
	// It is made on the plain token, and goes on behind the module.
	cluster, err := devcluster.Start(ctx, o.kekd, path)
	if err != nil {
		return nil, nil, err
	}
	if d, err = newDaemon(ctx, cluster.Nodes[0]); err == nil {
		d.close()
	}
	if err := errors.Join(err, cluster.Stop()); err != nil {
		return nil, nil, err
	}
	if err := configure(filepath.Join(path, "nodes"), o.faults); err != nil {
		return nil, nil, err
	}
	if cluster, err = devcluster.Start(ctx, o.kekd, path); err != nil {
		return nil, nil, err
	}
	stop = func() error { d.close(); return cluster.Stop() }
	d.node = cluster.Nodes[0]
	if err = d.dial(); err == nil {
		err = os.WriteFile(control, []byte(strings.Join(faultmodule.NetworkHSM().Rules, "\n")+"\n"), 0o600)
	}
	if err != nil {
		return nil, nil, errors.Join(err, stop())
	}
	return d, stop, nil
}

// configure puts the module between the only node and its token.
func configure(nodes, module string) error {
	matches, err := filepath.Glob(filepath.Join(nodes, "*", "kekd.toml"))
	if err != nil || len(matches) != 1 {
		return fmt.Errorf("one kekd.toml is needed, not %d: %v", len(matches), err)
	}
	var c map[string]any
	if _, err := toml.DecodeFile(matches[0], &c); err != nil {
		return err
	}
	hsm, ok := c["hsm"].(map[string]any)
	if !ok {
		return fmt.Errorf("%s has no [hsm]", matches[0])
	}
	if hsm["module"], err = filepath.Abs(module); err != nil {
		return err
	}
	hsm["sessions"] = networkSessions
	f, err := os.Create(matches[0])
	if err != nil {
		return err
	}
	return errors.Join(toml.NewEncoder(f).Encode(c), f.Close())
}
