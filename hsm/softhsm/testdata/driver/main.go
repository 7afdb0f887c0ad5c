// Command driver is a process that uses a SoftHSM token in the brackets of package softhsm. The
// tests trace it and kill it.
//
// It reads commands from stdin, one a line, and answers each with a line on stdout: first "begin"
// and the command, then "ok", the command and what it found, or "error", the command and why not.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/kekd/kekd/hsm/softhsm"
	"github.com/miekg/pkcs11"
)

const (
	module = "/usr/lib/softhsm/libsofthsm2.so"
	pin    = "test-pin" // of a token that lives as long as a test
	soPIN  = "test-so-pin"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: driver DIR < commands")
		os.Exit(2)
	}
	d := &driver{path: os.Args[1]}
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(nil, 1<<20)
	for in.Scan() {
		args := strings.Fields(in.Text())
		// One write each: the parent reads what was written before it killed us.
		os.Stdout.WriteString("begin " + in.Text() + "\n")
		found, err := d.run(args[0], args[1:])
		if err != nil {
			os.Stdout.WriteString(fmt.Sprintf("error %s: %v\n", in.Text(), strings.ReplaceAll(err.Error(), "\n", "; ")))
			continue
		}
		os.Stdout.WriteString(strings.TrimSpace("ok "+in.Text()+" "+found) + "\n")
	}
}

type driver struct {
	path    string
	dir     *softhsm.Dir
	guard   *softhsm.Guard
	p11     *pkcs11.Ctx
	slot    uint
	session pkcs11.SessionHandle
}

func (d *driver) run(command string, args []string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	change := func(f func() error) (string, error) { return "", d.guard.Change(ctx, f) }
	switch command {
	case "create":
		_, err := softhsm.Create(d.path)
		return "", err
	case "open":
		var err error
		if d.dir, err = softhsm.Open(d.path); err != nil {
			return "", err
		}
		return "", os.Setenv("SOFTHSM2_CONF", d.dir.Conf())
	case "repair":
		report, err := d.dir.Repair(ctx)
		return report.String(), err
	case "attach":
		var err error
		d.guard, err = d.dir.Attach(ctx, func(softhsm.Report) {})
		return "", err
	case "init":
		return "", d.guard.ChangeWhole(ctx, func() error { return d.init(args[0]) })
	case "load":
		return change(d.load)
	case "login":
		return change(d.login)
	case "relogin": // N times, in one bracket
		n, _ := strconv.Atoi(args[0])
		return change(func() error {
			for range n {
				if err := errors.Join(d.p11.Logout(d.session), d.login()); err != nil {
					return err
				}
			}
			return nil
		})
	case "mint":
		var check string
		err := d.guard.Change(ctx, func() (err error) {
			check, err = d.mint(args[0])
			return err
		})
		return check, err
	case "mint-without": // a bracket
		return d.mint(args[0])
	case "latch": // ID to true or false, N times, in one bracket
		usable := args[1] == "true"
		n, _ := strconv.Atoi(args[2])
		return change(func() error {
			for i := range 2*n + 1 {
				if err := d.latch(args[0], usable == (i%2 == 0)); err != nil {
					return err
				}
			}
			return nil
		})
	case "pair":
		return "", d.guard.ChangeWhole(ctx, func() error { return d.pair(args[0]) })
	case "destroy":
		return "", d.guard.Destroy(ctx, func() error { return d.destroy(args[0]) })
	case "raise": // a mark to N: a new object takes the place of the old one
		return "", d.guard.Destroy(ctx, func() error { return d.raise(args[0], args[1]) })
	case "destroy-in-change":
		return change(func() error { return d.destroy(args[0]) })
	case "close":
		if err := d.p11.Finalize(); err != nil {
			return "", err
		}
		return "", d.guard.Close()
	case "tear": // the file of the newest object
		return "", d.tear()
	case "mark": // stands for the proposal of what was minted
		return "", os.WriteFile(args[0], []byte("x"), 0o600)
	case "list":
		return d.list()
	}
	return "", fmt.Errorf("unknown command %q", command)
}

func (d *driver) init(label string) error {
	p := pkcs11.New(module)
	defer p.Destroy()
	if err := p.Initialize(); err != nil {
		return err
	}
	defer p.Finalize()
	slots, err := p.GetSlotList(true)
	if err != nil {
		return err
	}
	slot := slots[len(slots)-1]
	if err := p.InitToken(slot, soPIN, label); err != nil {
		return err
	}
	s, err := p.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
	if err != nil {
		return err
	}
	if err := p.Login(s, pkcs11.CKU_SO, soPIN); err != nil {
		return err
	}
	return p.InitPIN(s, pin)
}

func (d *driver) load() error {
	d.p11 = pkcs11.New(module)
	if err := d.p11.Initialize(); err != nil {
		return err
	}
	slots, err := d.p11.GetSlotList(true)
	if err != nil {
		return err
	}
	if len(slots) < 2 { // SoftHSM adds an empty slot to what it has
		return errors.New("no token")
	}
	d.slot = slots[0]
	d.session, err = d.p11.OpenSession(d.slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
	return err
}

func (d *driver) login() error { return d.p11.Login(d.session, pkcs11.CKU_USER, pin) }

func (d *driver) mint(id string) (string, error) {
	key, err := d.p11.GenerateKey(d.session,
		[]*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_KEY_GEN, nil)},
		[]*pkcs11.Attribute{
			pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY),
			pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_AES),
			pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true),
			pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, true),
			pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, true),
			pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, false),
			pkcs11.NewAttribute(pkcs11.CKA_ENCRYPT, true),
			pkcs11.NewAttribute(pkcs11.CKA_DECRYPT, true),
			pkcs11.NewAttribute(pkcs11.CKA_VALUE_LEN, 32),
			pkcs11.NewAttribute(pkcs11.CKA_LABEL, id),
			pkcs11.NewAttribute(pkcs11.CKA_ID, []byte(id)),
		})
	if err != nil {
		return "", err
	}
	as, err := d.p11.GetAttributeValue(d.session, key, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_CHECK_VALUE, nil)})
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%x", as[0].Value), nil
}

func (d *driver) pair(id string) error {
	_, _, err := d.p11.GenerateKeyPair(d.session,
		[]*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_EC_KEY_PAIR_GEN, nil)},
		[]*pkcs11.Attribute{
			pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true),
			pkcs11.NewAttribute(pkcs11.CKA_VERIFY, true),
			pkcs11.NewAttribute(pkcs11.CKA_EC_PARAMS, []byte{6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7}), // P-256
			pkcs11.NewAttribute(pkcs11.CKA_ID, []byte(id)),
		},
		[]*pkcs11.Attribute{
			pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true),
			pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, true),
			pkcs11.NewAttribute(pkcs11.CKA_SIGN, true),
			pkcs11.NewAttribute(pkcs11.CKA_ID, []byte(id)),
		})
	return err
}

// tear does what a kill between ftruncate and write does.
func (d *driver) tear() error {
	objects, err := filepath.Glob(d.path + "/tokens/*/*-*.object")
	if err != nil {
		return err
	}
	var newest string
	var at time.Time
	for _, o := range objects {
		if st, err := os.Stat(o); err == nil && st.ModTime().After(at) {
			newest, at = o, st.ModTime()
		}
	}
	return os.Truncate(newest, 0)
}

func (d *driver) find(template ...*pkcs11.Attribute) ([]pkcs11.ObjectHandle, error) {
	if err := d.p11.FindObjectsInit(d.session, template); err != nil {
		return nil, err
	}
	var handles []pkcs11.ObjectHandle
	for {
		more, _, err := d.p11.FindObjects(d.session, 1000)
		if err != nil || len(more) == 0 {
			return handles, errors.Join(err, d.p11.FindObjectsFinal(d.session))
		}
		handles = append(handles, more...)
	}
}

func (d *driver) secretKey(id string) (pkcs11.ObjectHandle, error) {
	handles, err := d.find(
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY),
		pkcs11.NewAttribute(pkcs11.CKA_ID, []byte(id)))
	if err != nil {
		return 0, err
	}
	if len(handles) != 1 {
		return 0, fmt.Errorf("%d keys %s", len(handles), id)
	}
	return handles[0], nil
}

func (d *driver) latch(id string, usable bool) error {
	key, err := d.secretKey(id)
	if err != nil {
		return err
	}
	return d.p11.SetAttributeValue(d.session, key, []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_ENCRYPT, usable),
		pkcs11.NewAttribute(pkcs11.CKA_DECRYPT, usable),
	})
}

func (d *driver) destroy(id string) error {
	key, err := d.secretKey(id)
	if err != nil {
		return err
	}
	return d.p11.DestroyObject(d.session, key)
}

func (d *driver) raise(id, value string) error {
	mark := []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_DATA),
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true),
		pkcs11.NewAttribute(pkcs11.CKA_LABEL, id),
	}
	old, err := d.find(mark...)
	if err != nil {
		return err
	}
	_, err = d.p11.CreateObject(d.session, append(mark,
		pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, true), pkcs11.NewAttribute(pkcs11.CKA_VALUE, []byte(value))))
	for _, h := range old {
		if err == nil {
			err = d.p11.DestroyObject(d.session, h)
		}
	}
	return err
}

// object is what the tests compare.
type object struct {
	Class  uint
	ID     string // of a mark: its label
	Mark   string `json:",omitempty"`
	Local  bool
	Check  string `json:",omitempty"` // as the token says
	Usable bool   `json:",omitempty"`
	Works  bool   `json:",omitempty"` // what it encrypts has the check value
}

// list describes every object on the token.
func (d *driver) list() (string, error) {
	handles, err := d.find()
	if err != nil {
		return "", err
	}
	objects := []object{}
	for _, h := range handles {
		as, err := d.p11.GetAttributeValue(d.session, h, []*pkcs11.Attribute{
			pkcs11.NewAttribute(pkcs11.CKA_CLASS, nil),
			pkcs11.NewAttribute(pkcs11.CKA_LABEL, nil),
		})
		if err != nil {
			return "", err
		}
		if as[0].Value[0] == pkcs11.CKO_DATA {
			value, err := d.p11.GetAttributeValue(d.session, h, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_VALUE, nil)})
			if err != nil {
				return "", err
			}
			objects = append(objects, object{ID: string(as[1].Value), Mark: string(value[0].Value)})
			continue
		}
		as, err = d.p11.GetAttributeValue(d.session, h, []*pkcs11.Attribute{
			pkcs11.NewAttribute(pkcs11.CKA_CLASS, nil),
			pkcs11.NewAttribute(pkcs11.CKA_ID, nil),
			pkcs11.NewAttribute(pkcs11.CKA_LOCAL, nil),
		})
		if err != nil {
			return "", err
		}
		o := object{Class: uint(as[0].Value[0]), ID: string(as[1].Value), Local: as[2].Value[0] != 0}
		if o.Class == pkcs11.CKO_SECRET_KEY {
			if err := d.describe(h, &o); err != nil {
				return "", err
			}
		}
		objects = append(objects, o)
	}
	out, err := json.Marshal(objects)
	return string(out), err
}

func (d *driver) describe(h pkcs11.ObjectHandle, o *object) error {
	as, err := d.p11.GetAttributeValue(d.session, h, []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CHECK_VALUE, nil),
		pkcs11.NewAttribute(pkcs11.CKA_ENCRYPT, nil),
	})
	if err != nil {
		return err
	}
	o.Check, o.Usable = fmt.Sprintf("%x", as[0].Value), as[1].Value[0] != 0
	if !o.Usable {
		return nil
	}
	if err := d.p11.EncryptInit(d.session, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_ECB, nil)}, h); err != nil {
		return err
	}
	block, err := d.p11.Encrypt(d.session, make([]byte, 16))
	if err != nil {
		return err
	}
	o.Works = fmt.Sprintf("%x", block[:3]) == o.Check
	return nil
}
