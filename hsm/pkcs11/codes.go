package pkcs11

import (
	"errors"
	"fmt"

	"github.com/miekg/pkcs11"

	"github.com/kekd/kekd/hsm"
)

// Codes that miekg/pkcs11 v1.1.2 has no name for.
const (
	ckrActionProhibited  = 0x1B // PKCS#11 v2.40
	ckrAEADDecryptFailed = 0x42 // PKCS#11 v3.0
)

// sentinels says what each code means to the daemon. A code that is not here is
// [hsm.ErrUnavailable]: nothing is known about the token then.
var sentinels = map[pkcs11.Error]error{
	pkcs11.CKR_ENCRYPTED_DATA_INVALID: hsm.ErrTagMismatch,
	ckrAEADDecryptFailed:              hsm.ErrTagMismatch,

	pkcs11.CKR_OBJECT_HANDLE_INVALID: hsm.ErrKeyNotFound,
	pkcs11.CKR_KEY_HANDLE_INVALID:    hsm.ErrKeyNotFound,

	pkcs11.CKR_KEY_FUNCTION_NOT_PERMITTED: hsm.ErrKeyLatched,

	pkcs11.CKR_KEY_SIZE_RANGE:        hsm.ErrKeyRefused,
	pkcs11.CKR_KEY_TYPE_INCONSISTENT: hsm.ErrKeyRefused,
	pkcs11.CKR_ATTRIBUTE_SENSITIVE:   hsm.ErrKeyRefused,
	pkcs11.CKR_KEY_UNEXTRACTABLE:     hsm.ErrKeyRefused,

	pkcs11.CKR_ARGUMENTS_BAD:            hsm.ErrInvalidInput,
	pkcs11.CKR_DATA_INVALID:             hsm.ErrInvalidInput,
	pkcs11.CKR_DATA_LEN_RANGE:           hsm.ErrInvalidInput,
	pkcs11.CKR_ENCRYPTED_DATA_LEN_RANGE: hsm.ErrInvalidInput,

	ckrActionProhibited:                 hsm.ErrUnsupported,
	pkcs11.CKR_ATTRIBUTE_READ_ONLY:      hsm.ErrUnsupported,
	pkcs11.CKR_ATTRIBUTE_TYPE_INVALID:   hsm.ErrUnsupported,
	pkcs11.CKR_ATTRIBUTE_VALUE_INVALID:  hsm.ErrUnsupported,
	pkcs11.CKR_FUNCTION_NOT_SUPPORTED:   hsm.ErrUnsupported,
	pkcs11.CKR_MECHANISM_INVALID:        hsm.ErrUnsupported,
	pkcs11.CKR_MECHANISM_PARAM_INVALID:  hsm.ErrUnsupported,
	pkcs11.CKR_TEMPLATE_INCOMPLETE:      hsm.ErrUnsupported,
	pkcs11.CKR_TEMPLATE_INCONSISTENT:    hsm.ErrUnsupported,
	pkcs11.CKR_TOKEN_WRITE_PROTECTED:    hsm.ErrUnsupported,
	pkcs11.CKR_RANDOM_NO_RNG:            hsm.ErrUnsupported,
	pkcs11.CKR_DOMAIN_PARAMS_INVALID:    hsm.ErrUnsupported,
	pkcs11.CKR_USER_PIN_NOT_INITIALIZED: hsm.ErrPINMissing,
	pkcs11.CKR_PIN_INCORRECT:            hsm.ErrPINIncorrect,
	pkcs11.CKR_PIN_INVALID:              hsm.ErrPINIncorrect,
	pkcs11.CKR_PIN_LEN_RANGE:            hsm.ErrPINIncorrect,
	pkcs11.CKR_PIN_EXPIRED:              hsm.ErrPINLocked,
	pkcs11.CKR_PIN_LOCKED:               hsm.ErrPINLocked,
	pkcs11.CKR_DEVICE_MEMORY:            hsm.ErrCapacity,
}

// failure wraps an error of the module with what it means and what was tried.
func failure(what string, err error) error {
	var code pkcs11.Error
	if !errors.As(err, &code) {
		return fmt.Errorf("%w: %s: %w", hsm.ErrUnavailable, what, err)
	}
	meaning, ok := sentinels[code]
	if !ok {
		meaning = hsm.ErrUnavailable
	}
	return fmt.Errorf("%w: %s: %w", meaning, what, code)
}

// sessionLost tells the codes after which the session is replaced. An operation that is
// active, or is not, against what was just called, means that the session is out of step.
func sessionLost(code pkcs11.Error) bool {
	switch code {
	case pkcs11.CKR_SESSION_HANDLE_INVALID, pkcs11.CKR_SESSION_CLOSED,
		pkcs11.CKR_OPERATION_ACTIVE, pkcs11.CKR_OPERATION_NOT_INITIALIZED:
		return true
	}
	return false
}

// transient tells the codes that a token can give for a moment while another process changes
// an object (seen with SoftHSM 2.6.1; healed within 6 ms).
func transient(code pkcs11.Error) bool {
	switch code {
	case pkcs11.CKR_OBJECT_HANDLE_INVALID, pkcs11.CKR_KEY_HANDLE_INVALID, pkcs11.CKR_KEY_FUNCTION_NOT_PERMITTED:
		return true
	}
	return false
}

// moduleLost tells the codes after which nothing in this process can be trusted to work again.
func moduleLost(code pkcs11.Error) bool {
	switch code {
	case pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED, pkcs11.CKR_DEVICE_ERROR, pkcs11.CKR_DEVICE_REMOVED,
		pkcs11.CKR_TOKEN_NOT_PRESENT, pkcs11.CKR_TOKEN_NOT_RECOGNIZED, pkcs11.CKR_USER_NOT_LOGGED_IN:
		return true
	}
	return false
}

// perhapsTag tells the codes that mean a tag that does not fit or a token that is dead, which
// only a canary can tell apart.
func perhapsTag(code pkcs11.Error) bool {
	switch code {
	case pkcs11.CKR_GENERAL_ERROR, pkcs11.CKR_FUNCTION_FAILED, pkcs11.CKR_DATA_INVALID, pkcs11.CKR_ENCRYPTED_DATA_LEN_RANGE:
		return true
	}
	return false
}
