package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/BurntSushi/toml"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/metrics"
)

// config is kekd.toml. Every key that is not known is an error: a misspelt limit that is
// silently absent protects nobody.
type config struct {
	DataDir    string `toml:"data_dir"`
	LockMemory bool   `toml:"lock_memory"`

	Node        nodeConfig     `toml:"node"`
	Peers       *peersConfig   `toml:"peers"`         // nil: a cluster of one, without a port
	HSM         hsmConfig      `toml:"hsm,omitempty"` // zero where there is a Witness
	Witness     *witnessConfig `toml:"witness"`       // nil: the node has a token
	Socket      socketConfig   `toml:"socket"`
	AdminSocket socketConfig   `toml:"admin_socket"`
	Metrics     *metricsConfig `toml:"metrics"` // nil: on admin_socket alone
	Log         logConfig      `toml:"log"`
}

// hasToken tells whether the node has an HSM: all have but a witness.
func (c *config) hasToken() bool { return c.Witness == nil }

type nodeConfig struct {
	Name   string `toml:"name"`
	Region string `toml:"region"`
}

type hsmConfig struct {
	Module string `toml:"module"` // path of the PKCS#11 module
	Token  string `toml:"token"`  // RFC 7512 URI with pin-source
	// SoftHSM is a directory that kekd makes and looks after, for the embedded default: it
	// holds softhsm2.conf and the token's files. Empty: the token is somebody else's.
	SoftHSM   string `toml:"softhsm"`
	Workers   int    `toml:"workers"`    // processes that drive the token; 0: as its model needs
	Sessions  int    `toml:"sessions"`   // of each worker; 0: as the token's model needs
	MaxCopies int    `toml:"max_copies"` // session copies of hot keys; 0: 16,384 for SoftHSM, 1,024 for others
	// MaxObjects is how many objects the token is to hold, everybody's together, before keys are
	// refused: see package capacity. No token says it reliably, so the operator does. 0: 32,768
	// for SoftHSM, which has no bound, but takes 10 kB of memory in each worker and two files on
	// the disk for each; 4,096 for others, of which vendors promise "some thousands" (AWS
	// CloudHSM: 16,666).
	MaxObjects uint64 `toml:"max_objects"`
}

type socketConfig struct {
	Path  string   `toml:"path"`
	Mode  fileMode `toml:"mode"`
	Group string   `toml:"group"` // name or number; empty: the daemon's own
}

// metricsConfig is a port for scrapers that take no Unix socket.
type metricsConfig struct {
	Listen string `toml:"listen"` // loopback address and port
}

type logConfig struct {
	Level  string `toml:"level"`  // debug, info, warn or error
	Format string `toml:"format"` // text or json
}

// fileMode is written as a string, "0660": TOML has no octal that people recognise.
type fileMode fs.FileMode

func (m *fileMode) UnmarshalText(b []byte) error {
	n, err := strconv.ParseUint(string(b), 8, 32)
	if err != nil || n > 0o777 {
		return fmt.Errorf("mode %q: write it in octal, such as \"0660\"", b)
	}
	*m = fileMode(n)
	return nil
}

const softHSMModule = "/usr/lib/softhsm/libsofthsm2.so"

// defaults are what a file that says nothing gets.
func defaults() config {
	return config{
		DataDir:     "/var/lib/kekd",
		LockMemory:  true,
		HSM:         hsmConfig{Module: softHSMModule},
		Socket:      socketConfig{Path: "/run/kekd/kekd.sock", Mode: 0o666},
		AdminSocket: socketConfig{Path: "/run/kekd/admin.sock", Mode: 0o660},
		Log:         logConfig{Level: "info", Format: "text"},
	}
}

// loadConfig reads and checks a configuration file. Whether it may be trusted is for [config.mustBeOurs].
func loadConfig(path string) (config, error) {
	c := defaults()
	meta, err := toml.DecodeFile(path, &c)
	if errors.Is(err, fs.ErrNotExist) {
		return c, fmt.Errorf("no configuration at %s: give --config, or see docs/OPERATIONS.md for an example", path)
	}
	if err != nil {
		return c, fmt.Errorf("configuration %s: %w", path, err)
	}
	if unknown := meta.Undecoded(); len(unknown) > 0 {
		names := make([]string, len(unknown))
		for i, k := range unknown {
			names[i] = k.String()
		}
		return c, fmt.Errorf("configuration %s: unknown: %s", path, strings.Join(names, ", "))
	}
	if c.Witness != nil {
		if meta.IsDefined("hsm") {
			return c, fmt.Errorf("configuration %s: [witness] is for a node without an HSM: leave [hsm] out, or [witness]", path)
		}
		c.HSM = hsmConfig{}
	}
	if err := c.check(); err != nil {
		return c, fmt.Errorf("configuration %s: %w", path, err)
	}
	return c, nil
}

// Bounds of hsm.max_objects. A token needs three objects for the daemon itself, and some that are
// spare. Above a hundred thousand a listing is slow, and one of more than 300,000 is refused by the
// protocol of workers.
const (
	minObjects = 16
	maxObjects = 200_000
)

// maxSocketPath is what fits into sockaddr_un.sun_path with its final zero (unix(7)).
const maxSocketPath = 107

func (c *config) check() error {
	for _, n := range []struct{ what, name string }{{"node.name", c.Node.Name}, {"node.region", c.Node.Region}} {
		if err := hierarchy.ValidateName(n.name); err != nil {
			return fmt.Errorf("%s: %w", n.what, err)
		}
	}
	for _, p := range []struct{ what, path string }{
		{"data_dir", c.DataDir}, {"socket.path", c.Socket.Path}, {"admin_socket.path", c.AdminSocket.Path},
	} {
		if err := mustBeAbsolute(p.what, p.path); err != nil {
			return err
		}
	}
	for _, s := range []socketConfig{c.Socket, c.AdminSocket} {
		if _, err := groupID(s.Group); err != nil {
			return fmt.Errorf("socket %s: %w", s.Path, err)
		}
		if len(s.Path) > maxSocketPath {
			return fmt.Errorf("socket path %s has %d bytes, a Unix socket's may have %d", s.Path, len(s.Path), maxSocketPath)
		}
	}
	if c.Socket.Path == c.AdminSocket.Path {
		return fmt.Errorf("socket and admin_socket have the same path %s", c.Socket.Path)
	}
	if c.Metrics != nil {
		if err := metrics.CheckLoopback(c.Metrics.Listen); err != nil {
			return fmt.Errorf("metrics.listen: %w", err)
		}
	}
	if c.Peers != nil {
		if err := c.Peers.check(); err != nil {
			return err
		}
	}
	if c.hasToken() {
		if err := c.HSM.check(); err != nil {
			return err
		}
	} else if err := c.checkWitness(); err != nil {
		return err
	}
	if _, err := newLogger(os.Stderr, c.Log); err != nil {
		return err
	}
	return nil
}

func (c *hsmConfig) check() error {
	if err := mustBeAbsolute("hsm.module", c.Module); err != nil {
		return err
	}
	if c.SoftHSM != "" {
		if err := mustBeAbsolute("hsm.softhsm", c.SoftHSM); err != nil {
			return err
		}
	}
	if c.Token == "" {
		return fmt.Errorf("hsm.token: give the token's RFC 7512 URI, such as \"pkcs11:token=kekd?pin-source=file:/etc/kekd/pin\"")
	}
	if c.Sessions < 0 || c.Sessions > 1024 {
		return fmt.Errorf("hsm.sessions: %d is not between 0 and 1024", c.Sessions)
	}
	if c.Workers < 0 || c.Workers > 64 {
		return fmt.Errorf("hsm.workers: %d is not between 0 and 64", c.Workers)
	}
	if c.MaxCopies < 0 {
		return fmt.Errorf("hsm.max_copies: %d is negative", c.MaxCopies)
	}
	if c.MaxObjects != 0 && (c.MaxObjects < minObjects || c.MaxObjects > maxObjects) {
		return fmt.Errorf("hsm.max_objects: %d is not 0, and not between %d and %d", c.MaxObjects, minObjects, maxObjects)
	}
	return nil
}

func mustBeAbsolute(what, path string) error {
	if !filepath.IsAbs(path) {
		return fmt.Errorf("%s: %q is not an absolute path", what, path)
	}
	return nil
}

func (m fileMode) perm() fs.FileMode { return fs.FileMode(m) }

// MarshalText is the inverse of UnmarshalText.
func (m fileMode) MarshalText() ([]byte, error) { return fmt.Appendf(nil, "%04o", uint32(m)), nil }
