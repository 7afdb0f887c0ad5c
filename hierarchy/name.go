package hierarchy

import (
	"fmt"
	"strconv"
	"strings"
)

// MaxNameLen is the longest name in bytes: that of a DNS label (RFC 1035 section 2.3.4).
const MaxNameLen = 63

// ValidateName checks a name of a tenant, key, region, node, service or operator:
// [a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?
func ValidateName(name string) error {
	if name == "" {
		return fmt.Errorf("%w: a name is empty", ErrInvalidArgument)
	}
	if len(name) > MaxNameLen {
		return fmt.Errorf("%w: a name has %d characters, at most %d are allowed", ErrInvalidArgument, len(name), MaxNameLen)
	}
	for i := range len(name) {
		c := name[i]
		alnum := c >= 'a' && c <= 'z' || c >= '0' && c <= '9'
		if !alnum && (c != '-' || i == 0 || i == len(name)-1) {
			return fmt.Errorf("%w: name %q: use a-z, 0-9 and, inside, '-'", ErrInvalidArgument, name)
		}
	}
	return nil
}

// KeyName is the name of a key: tenant and key, written acme/orders.
type KeyName struct {
	Tenant string
	Key    string
}

func (n KeyName) String() string { return n.Tenant + "/" + n.Key }

// ParseKeyName reads TENANT/KEY.
func ParseKeyName(s string) (KeyName, error) {
	tenant, key, ok := strings.Cut(s, "/")
	if !ok {
		return KeyName{}, fmt.Errorf("%w: %q: a key is written TENANT/KEY", ErrInvalidArgument, s)
	}
	if err := ValidateName(tenant); err != nil {
		return KeyName{}, fmt.Errorf("tenant in %q: %w", s, err)
	}
	if err := ValidateName(key); err != nil {
		return KeyName{}, fmt.Errorf("key in %q: %w", s, err)
	}
	return KeyName{tenant, key}, nil
}

// VersionName is the name of a key version, written acme/orders@3.
type VersionName struct {
	KeyName
	Version uint32
}

func (n VersionName) String() string {
	return n.KeyName.String() + "@" + strconv.FormatUint(uint64(n.Version), 10)
}

// ParseVersionName reads TENANT/KEY@VERSION.
func ParseVersionName(s string) (VersionName, error) {
	name, num, ok := strings.Cut(s, "@")
	if !ok {
		return VersionName{}, fmt.Errorf("%w: %q: a key version is written TENANT/KEY@VERSION", ErrInvalidArgument, s)
	}
	key, err := ParseKeyName(name)
	if err != nil {
		return VersionName{}, err
	}
	v, err := strconv.ParseUint(num, 10, 32)
	if err != nil || v == 0 || strconv.FormatUint(v, 10) != num {
		return VersionName{}, fmt.Errorf("%w: %q: a version is a number from 1", ErrInvalidArgument, s)
	}
	return VersionName{key, uint32(v)}, nil
}
