package main

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/BurntSushi/toml"
)

// devNode is one node as cluster.json shows it.
type devNode struct {
	ID           string `json:"id"`
	Name         string `json:"name"`
	Region       string `json:"region"`
	Role         string `json:"role"`
	PID          int    `json:"pid"` // 0: it has ended
	Socket       string `json:"socket"`
	AdminSocket  string `json:"admin_socket"`
	TokenURI     string `json:"token_uri"` // of a witness, as the next two: empty
	SoftHSM2Conf string `json:"softhsm2_conf"`
	PINFile      string `json:"pin_file"`
	DataDir      string `json:"data_dir"`

	dir     string
	made    bool        // initialised, or joined
	process *devProcess // nil: it does not run
}

func (n *devNode) configPath() string { return filepath.Join(n.dir, "kekd.toml") }
func (n *devNode) logPath() string    { return filepath.Join(n.dir, "kekd.log") }

// prepare writes what each node needs before it is made, where it is not there, and reads what is.
func (c *devCluster) prepare() error {
	var ca *devCA
	if len(c.nodes) > 1 {
		var err error
		if ca, err = openDevCA(filepath.Join(c.dir, "ca")); err != nil {
			return err
		}
	}
	host := loopback()
	for i, n := range c.nodes {
		if err := os.MkdirAll(n.dir, 0o755); err != nil {
			return err
		}
		own := c.configOf(n)
		if ca != nil {
			own.Peers = &peersConfig{Listen: net.JoinHostPort(host, strconv.Itoa(firstPeerPort+i)),
				Certificate: filepath.Join(n.dir, "peer.pem"), Key: filepath.Join(n.dir, "peer.key"), CA: ca.path()}
			if err := ca.certify(n.Name, own.Peers.Certificate, own.Peers.Key); err != nil {
				return err
			}
		}
		if err := c.configure(n, own); err != nil {
			return err
		}
	}
	return nil
}

// loopback draws an address of this machine that a cluster has for itself, in 127.0.0.0/8: its ports are
// free then, also after nodes were down for a while.
func loopback() string {
	return net.IPv4(127, byte(1+rand.N(254)), byte(rand.N(256)), byte(1+rand.N(254))).String()
}

const firstPeerPort = 7601

// configOf is a node's configuration, but for its peers. It also fills in what cluster.json says of it.
func (c *devCluster) configOf(n *devNode) config {
	n.DataDir = filepath.Join(n.dir, "data")
	n.Socket = filepath.Join(n.dir, "kekd.sock")
	n.AdminSocket = filepath.Join(n.dir, "admin.sock")
	own := defaults()
	own.DataDir = n.DataDir
	own.Node = nodeConfig{Name: n.Name, Region: n.Region}
	own.Socket = socketConfig{Path: n.Socket, Mode: 0o666}
	own.AdminSocket = socketConfig{Path: n.AdminSocket, Mode: 0o660}
	if n.Role == roleWitness {
		own.HSM, own.Witness = hsmConfig{}, &witnessConfig{Dir: filepath.Join(n.dir, "witness")}
		return own
	}
	region := filepath.Join(c.dir, "regions", n.Region)
	n.PINFile = filepath.Join(region, "pin")
	n.TokenURI = "pkcs11:token=kekd-" + n.Region
	own.HSM.Token = n.TokenURI + "?pin-source=file:" + n.PINFile
	own.HSM.SoftHSM = filepath.Join(region, "softhsm")
	n.SoftHSM2Conf = softHSMConf(own.HSM.SoftHSM)
	return own
}

// configure writes a node's configuration, unless it has one, which then has to be of this directory.
func (c *devCluster) configure(n *devNode, own config) error {
	if own.HSM.SoftHSM != "" {
		if err := os.MkdirAll(filepath.Dir(own.HSM.SoftHSM), 0o700); err != nil {
			return err
		}
	}
	if _, err := os.Stat(n.configPath()); errors.Is(err, fs.ErrNotExist) {
		if err := own.check(); err != nil {
			return err
		}
		var b strings.Builder
		b.WriteString("# Made by kekd dev.\n")
		if err := toml.NewEncoder(&b).Encode(own); err != nil {
			return err
		}
		if err := writeFileAtomic(n.configPath(), []byte(b.String()), 0o644); err != nil {
			return err
		}
	}
	cfg, err := loadConfig(n.configPath())
	if err != nil {
		return err
	}
	if err := n.mustBeHere(cfg, own); err != nil {
		return err
	}
	if _, err := loadNode(cfg, n.configPath()); err != nil {
		return nil // whoever makes it will say what is wrong
	}
	return n.load()
}

// load reads who a node is that was made.
func (n *devNode) load() error {
	nf, err := readNode(n.DataDir)
	if err != nil {
		return err
	}
	n.ID, n.made = nf.NodeID.String(), true
	return nil
}

// mustBeHere refuses a configuration of another directory: this one was copied from there, and would
// drive that one's token and data, or was moved, and would begin anew there.
func (n *devNode) mustBeHere(cfg, own config) error {
	type path struct{ key, is, want string }
	paths := []path{
		{"data_dir", cfg.DataDir, own.DataDir}, {"hsm.softhsm", cfg.HSM.SoftHSM, own.HSM.SoftHSM}, {"hsm.token", cfg.HSM.Token, own.HSM.Token},
		{"socket.path", cfg.Socket.Path, own.Socket.Path}, {"admin_socket.path", cfg.AdminSocket.Path, own.AdminSocket.Path},
	}
	if own.Peers != nil {
		is := peersConfig{}
		if cfg.Peers != nil {
			is = *cfg.Peers
		}
		paths = append(paths, path{"peers.certificate", is.Certificate, own.Peers.Certificate},
			path{"peers.key", is.Key, own.Peers.Key}, path{"peers.ca", is.CA, own.Peers.CA})
	}
	if own.Witness != nil {
		is := witnessConfig{}
		if cfg.Witness != nil {
			is = *cfg.Witness
		}
		paths = append(paths, path{"witness.dir", is.Dir, own.Witness.Dir})
	}
	files := "this file"
	if n.SoftHSM2Conf != "" {
		files += " and into " + n.SoftHSM2Conf
	}
	for _, p := range paths {
		if p.is != p.want {
			return fmt.Errorf("%s has %s = %q, and kekd dev has to find %q there: the directory was copied or moved, or the file was changed. "+
				"Move it back, or give another --dir. If it was moved for good, put the new paths into %s",
				n.configPath(), p.key, p.is, p.want, files)
		}
	}
	return nil
}
