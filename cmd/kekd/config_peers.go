package main

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/kekd/kekd/cluster"
	"github.com/kekd/kekd/cluster/peer"
)

// peersConfig is the one port on which nodes of a cluster reach each other, over mTLS.
type peersConfig struct {
	Listen    string `toml:"listen"`    // host:port
	Advertise string `toml:"advertise"` // host:port that the others reach it at; empty: as listen
	// PEM files, read again when they change. The certificate has the node's name as a DNS name, and is
	// signed by the cluster's own authority.
	Certificate string `toml:"certificate"`
	Key         string `toml:"key"`
	CA          string `toml:"ca"`
}

// witnessConfig is of a node without an HSM, which votes and serves nothing.
type witnessConfig struct {
	// Dir holds what a token would: the key that signs the node's audit journal, and the node's mark. It is no
	// part of data_dir, so that a disk that is put back from a backup does not take it along.
	Dir string `toml:"dir"`
}

// peers is the port as package cluster takes it; nil: there is none.
func (c *config) peers() *cluster.Peers {
	if c.Peers == nil {
		return nil
	}
	return &cluster.Peers{
		Name: c.Node.Name, Listen: c.Peers.Listen, Advertise: c.Peers.Advertise,
		Files: peer.Files{Certificate: c.Peers.Certificate, Key: c.Peers.Key, CA: c.Peers.CA},
	}
}

// address is where the peers reach this node.
func (c *peersConfig) address() string {
	if c.Advertise != "" {
		return c.Advertise
	}
	return c.Listen
}

func (c *peersConfig) check() error {
	if err := checkAddress(c.Listen); err != nil {
		return fmt.Errorf("peers.listen: %w", err)
	}
	if c.Advertise != "" {
		if err := checkAddress(c.Advertise); err != nil {
			return fmt.Errorf("peers.advertise: %w", err)
		}
	}
	if host, _, _ := net.SplitHostPort(c.address()); host == "" || net.ParseIP(host).IsUnspecified() {
		return fmt.Errorf("peers.advertise: %q is no address that others could reach this node at: give one, such as \"eu-west-1.example.net:7600\"", c.address())
	}
	for _, f := range []struct{ what, path string }{
		{"peers.certificate", c.Certificate}, {"peers.key", c.Key}, {"peers.ca", c.CA},
	} {
		if err := mustBeAbsolute(f.what, f.path); err != nil {
			return err
		}
	}
	return nil
}

// checkAddress is strict: what is half right would be found out by other nodes, and later.
func checkAddress(address string) error {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("%q is not host:port", address)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("%q has no port between 1 and 65535", address)
	}
	return nil
}

func (c *config) checkWitness() error {
	if err := mustBeAbsolute("witness.dir", c.Witness.Dir); err != nil {
		return err
	}
	if c.Peers == nil {
		return errors.New("a witness votes for others: [witness] needs [peers]")
	}
	if isInside(c.Witness.Dir, c.DataDir) || isInside(c.DataDir, c.Witness.Dir) {
		return fmt.Errorf("witness.dir: %s and data_dir %s are one inside of the other: what is in it must not be lost, or put back, together with data_dir", c.Witness.Dir, c.DataDir)
	}
	return nil
}

// isInside tells whether a path is a directory or something in it.
func isInside(path, dir string) bool {
	return strings.HasPrefix(filepath.Clean(path)+"/", filepath.Clean(dir)+"/")
}
