package pkcs11_test

import (
	"encoding/hex"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/pkcs11"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hsm"
	kekd "github.com/kekd/kekd/hsm/pkcs11"
)

// TestTemplates pins every attribute of every object that is made: a change here is a change
// of what a key may do.
func TestTemplates(t *testing.T) {
	names := map[uint]string{
		pkcs11.CKA_CLASS: "CLASS", pkcs11.CKA_KEY_TYPE: "KEY_TYPE", pkcs11.CKA_VALUE_LEN: "VALUE_LEN", pkcs11.CKA_TOKEN: "TOKEN",
		pkcs11.CKA_PRIVATE: "PRIVATE", pkcs11.CKA_SENSITIVE: "SENSITIVE", pkcs11.CKA_EXTRACTABLE: "EXTRACTABLE",
		pkcs11.CKA_ENCRYPT: "ENCRYPT", pkcs11.CKA_DECRYPT: "DECRYPT", pkcs11.CKA_WRAP: "WRAP", pkcs11.CKA_UNWRAP: "UNWRAP",
		pkcs11.CKA_SIGN: "SIGN", pkcs11.CKA_VERIFY: "VERIFY", pkcs11.CKA_DERIVE: "DERIVE",
		pkcs11.CKA_ID: "ID", pkcs11.CKA_LABEL: "LABEL", pkcs11.CKA_EC_PARAMS: "EC_PARAMS",
		pkcs11.CKA_APPLICATION: "APPLICATION", pkcs11.CKA_VALUE: "VALUE", pkcs11.CKA_MODIFIABLE: "MODIFIABLE",
	}
	text := func(template []*pkcs11.Attribute) map[string]string {
		m := map[string]string{}
		for _, a := range template {
			name, ok := names[a.Type]
			if !ok {
				name = fmt.Sprintf("0x%X", a.Type)
			}
			if _, twice := m[name]; twice {
				t.Errorf("%s is there twice", name)
			}
			m[name] = hex.EncodeToString(a.Value)
		}
		return m
	}
	ulong := func(n byte) string { return fmt.Sprintf("%02x00000000000000", n) }
	with := func(m map[string]string, more ...string) map[string]string {
		all := map[string]string{}
		for k, v := range m {
			all[k] = v
		}
		for i := 0; i < len(more); i += 2 {
			all[more[i]] = more[i+1]
		}
		return all
	}
	const yes, no = "01", "00"
	secret := map[string]string{
		"CLASS": ulong(4), "KEY_TYPE": ulong(0x1f), "VALUE_LEN": ulong(32),
		"PRIVATE": yes, "SENSITIVE": yes, "EXTRACTABLE": no,
		"WRAP": no, "UNWRAP": no, "SIGN": no, "VERIFY": no,
	}
	id := hierarchy.ObjectID{1, 2}
	for name, c := range map[string]struct {
		got  []*pkcs11.Attribute
		want map[string]string
	}{
		"KEK and bridge": {kekd.KEKTemplate(id, "kekd/a"), with(secret, "TOKEN", yes, "ENCRYPT", yes, "DECRYPT", yes, "DERIVE", no,
			"ID", id.String(), "LABEL", hex.EncodeToString([]byte("kekd/a")))},
		"twin":         {kekd.TwinTemplate(), with(secret, "TOKEN", no, "ENCRYPT", yes, "DECRYPT", yes, "DERIVE", no)},
		"intermediate": {kekd.IntermediateTemplate(), with(secret, "TOKEN", no, "ENCRYPT", no, "DECRYPT", no, "DERIVE", yes)},
		"copy":         {kekd.CopyTemplate(), map[string]string{"TOKEN": no, "PRIVATE": yes}},
		"pair, public": {kekd.PairPublicTemplate(), map[string]string{"CLASS": ulong(2), "KEY_TYPE": ulong(3), "TOKEN": no,
			"EC_PARAMS": "06082a8648ce3d030107", "VERIFY": no, "ENCRYPT": no, "WRAP": no}},
		"pair, private": {kekd.PairPrivateTemplate(), map[string]string{"CLASS": ulong(3), "KEY_TYPE": ulong(3), "TOKEN": no,
			"PRIVATE": yes, "SENSITIVE": yes, "EXTRACTABLE": no, "DERIVE": yes, "SIGN": no, "DECRYPT": no, "UNWRAP": no}},
		"latched":   {kekd.LatchTemplate(false), map[string]string{"ENCRYPT": no, "DECRYPT": no}},
		"unlatched": {kekd.LatchTemplate(true), map[string]string{"ENCRYPT": yes, "DECRYPT": yes}},
		"mark": {kekd.MarkTemplate(owner, mark(1, 2, 3)), map[string]string{"CLASS": ulong(0), "TOKEN": yes, "PRIVATE": yes, "MODIFIABLE": no,
			"APPLICATION": hex.EncodeToString(fmt.Appendf(nil, "kekd/%s/%s", owner.Cluster, owner.Node)),
			"LABEL":       hex.EncodeToString([]byte("kekd/mark/" + owner.Node.String())),
			"VALUE":       hex.EncodeToString(hsm.AppendMark(nil, owner, mark(1, 2, 3)))}},
		"search": {kekd.SearchByID(id), map[string]string{"CLASS": ulong(4), "TOKEN": yes, "ID": id.String()}},
	} {
		if diff := cmp.Diff(c.want, text(c.got)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}
