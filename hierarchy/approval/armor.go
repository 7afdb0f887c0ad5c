package approval

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"github.com/kekd/kekd/hierarchy"
)

// errArmor is of text that is no SSHSIG in its armor.
var errArmor = errors.New("it is not what `ssh-keygen -Y sign` writes, from -----BEGIN SSH SIGNATURE----- to its end")

// Lines of the armor.
const (
	armorBegin = "-----BEGIN SSH SIGNATURE-----"
	armorEnd   = "-----END SSH SIGNATURE-----"
	armorWidth = 70 // as ssh-keygen breaks it
)

// Armor writes a signature's bytes as ssh-keygen does.
func Armor(signature []byte) []byte {
	var b bytes.Buffer
	b.WriteString(armorBegin + "\n")
	for text := base64.StdEncoding.EncodeToString(signature); text != ""; {
		n := min(armorWidth, len(text))
		b.WriteString(text[:n] + "\n")
		text = text[n:]
	}
	b.WriteString(armorEnd + "\n")
	return b.Bytes()
}

// Unarmor takes a signature's bytes out of the file that ssh-keygen has written.
func Unarmor(file []byte) ([]byte, error) {
	text := strings.TrimSpace(string(file))
	text, begins := strings.CutPrefix(text, armorBegin)
	text, ends := strings.CutSuffix(text, armorEnd)
	if !begins || !ends || len(file) > 2*MaxSignature {
		return nil, fmt.Errorf("%w: signature: %w", hierarchy.ErrInvalidArgument, errArmor)
	}
	text = strings.NewReplacer("\r", "", "\n", "").Replace(text)
	b, err := base64.StdEncoding.Strict().DecodeString(text)
	if err != nil {
		return nil, fmt.Errorf("%w: signature: %w", hierarchy.ErrInvalidArgument, errArmor)
	}
	return b, nil
}
