package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const (
	goodTop     = "data_dir = \"/var/lib/kekd/data\"\n[node]\nname = \"eu-1\"\nregion = \"eu\"\n"
	goodHSM     = "[hsm]\ntoken = \"pkcs11:token=kekd?pin-source=file:/etc/kekd/pin\"\n"
	goodPeers   = "[peers]\nlisten = \"10.0.0.1:7600\"\ncertificate = \"/etc/kekd/node.pem\"\nkey = \"/etc/kekd/node.key\"\nca = \"/etc/kekd/ca.pem\"\n"
	goodWitness = "[witness]\ndir = \"/var/lib/kekd-witness\"\n"
)

// Metrics are served without credentials, so to this machine alone.
func TestConfigurationOfMetrics(t *testing.T) {
	for listen, wrong := range map[string]string{
		"127.0.0.1:9617": "", "[::1]:9617": "",
		"0.0.0.0:9617": "is not a loopback address", "[::]:9617": "is not a loopback address", "10.0.0.1:9617": "such as 127.0.0.1:9617",
		"localhost:9617": "is not an IP address and a port", ":9617": "is not an IP address and a port", "": "is not an IP address and a port",
		"127.0.0.1:0": "no port",
	} {
		path := filepath.Join(t.TempDir(), "kekd.toml")
		if err := os.WriteFile(path, []byte(goodTop+goodHSM+"[metrics]\nlisten = \""+listen+"\"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := loadConfig(path)
		switch {
		case wrong == "" && (err != nil || c.Metrics == nil || c.Metrics.Listen != listen):
			t.Errorf("%s: %+v, %v", listen, c.Metrics, err)
		case wrong != "" && (err == nil || !strings.Contains(err.Error(), "metrics.listen: ") || !strings.Contains(err.Error(), wrong)):
			t.Errorf("%s: %v, want an error that %s", listen, err, wrong)
		}
	}
}

// What is wrong in a configuration is named; nothing, where it has to be taken.
func TestConfigurationOfPeersAndWitnesses(t *testing.T) {
	peers := func(from, to string) string {
		changed := strings.Replace(goodPeers, from, to, 1)
		if changed == goodPeers {
			t.Fatalf("no %q in the good one", from)
		}
		return goodTop + goodHSM + changed
	}
	for name, c := range map[string]struct{ text, wrong string }{
		"alone":                {text: goodTop + goodHSM},
		"with peers":           {text: goodTop + goodHSM + goodPeers},
		"a name is a host":     {text: peers("10.0.0.1:7600", "eu-1.example.net:7600")},
		"listens everywhere":   {text: peers("10.0.0.1:7600\"", "[::]:7600\"\nadvertise = \"10.0.0.1:7600\"")},
		"witness":              {text: goodTop + goodPeers + goodWitness},
		"everywhere alone":     {text: peers("10.0.0.1:7600", ":7600"), wrong: "peers.advertise"},
		"everywhere, in words": {text: peers("10.0.0.1:7600", "0.0.0.0:7600"), wrong: "peers.advertise"},
		"advertises nothing":   {text: peers("10.0.0.1:7600\"", "10.0.0.1:7600\"\nadvertise = \"[::]:7600\""), wrong: "peers.advertise"},
		"no port":              {text: peers("10.0.0.1:7600", "10.0.0.1"), wrong: "peers.listen"},
		"port 0":               {text: peers("10.0.0.1:7600", "10.0.0.1:0"), wrong: "peers.listen"},
		"port too high":        {text: peers("10.0.0.1:7600", "10.0.0.1:70000"), wrong: "peers.listen"},
		"port in letters":      {text: peers("10.0.0.1:7600", "10.0.0.1:https"), wrong: "peers.listen"},
		"no certificate":       {text: peers("certificate = \"/etc/kekd/node.pem\"\n", ""), wrong: "peers.certificate"},
		"relative key":         {text: peers("/etc/kekd/node.key", "node.key"), wrong: "peers.key"},
		"relative CA":          {text: peers("/etc/kekd/ca.pem", "./ca.pem"), wrong: "peers.ca"},
		"misspelt":             {text: peers("listen =", "listens ="), wrong: "peers.listens"},
		"nothing in peers":     {text: goodTop + goodHSM + "[peers]\n", wrong: "peers.listen"},
		"witness with an HSM":  {text: goodTop + goodHSM + goodPeers + goodWitness, wrong: "[hsm]"},
		"witness alone":        {text: goodTop + goodWitness, wrong: "needs [peers]"},
		"no HSM, no witness":   {text: goodTop + goodPeers, wrong: "hsm.token"},
		"witness in data_dir":  {text: goodTop + goodPeers + "[witness]\ndir = \"/var/lib/kekd/data/../data/witness\"\n", wrong: "witness.dir"},
		"data_dir in witness":  {text: goodTop + goodPeers + "[witness]\ndir = \"/var/lib/kekd\"\n", wrong: "witness.dir"},
		"beside data_dir":      {text: goodTop + goodPeers + "[witness]\ndir = \"/var/lib/kekd/data2\"\n"},
		"relative witness":     {text: goodTop + goodPeers + "[witness]\ndir = \"witness\"\n", wrong: "witness.dir"},
		"nothing in witness":   {text: goodTop + goodPeers + "[witness]\n", wrong: "witness.dir"},
	} {
		path := filepath.Join(t.TempDir(), "kekd.toml")
		if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := loadConfig(path)
		switch {
		case c.wrong == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case c.wrong != "" && (err == nil || !strings.Contains(err.Error(), c.wrong)):
			t.Errorf("%s: %v, want an error about %s", name, err, c.wrong)
		}
	}
}

// A configuration is not used if somebody else can change what it names.
func TestFilesOfPeersAreOurs(t *testing.T) {
	dir := t.TempDir()
	write := func(name string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	c := defaults()
	c.DataDir, c.HSM = filepath.Join(dir, "data"), hsmConfig{}
	c.Socket.Path, c.AdminSocket.Path = filepath.Join(dir, "kekd.sock"), filepath.Join(dir, "admin.sock")
	c.Peers = &peersConfig{Listen: "10.0.0.1:7600", Certificate: write("node.pem"), Key: write("node.key"), CA: write("ca.pem")}
	c.Witness = &witnessConfig{Dir: filepath.Join(dir, "witness")}
	config := write("kekd.toml")
	if err := c.mustBeOurs(config, dir); err != nil {
		t.Fatalf("all is ours: %v", err)
	}
	for _, open := range []struct {
		path string
		mode os.FileMode
	}{{c.Peers.Certificate, 0o666}, {c.Peers.Key, 0o620}, {c.Peers.CA, 0o646}} {
		if err := os.Chmod(open.path, open.mode); err != nil {
			t.Fatal(err)
		}
		if err := c.mustBeOurs(config, dir); err == nil || !strings.Contains(err.Error(), open.path) {
			t.Errorf("%s with mode %v: %v", open.path, open.mode, err)
		}
		if err := os.Chmod(open.path, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(c.Witness.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(c.Witness.Dir, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	if err := c.mustBeOurs(config, dir); err == nil || !strings.Contains(err.Error(), c.Witness.Dir) {
		t.Errorf("a witness directory of somebody else: %v", err)
	}
}
