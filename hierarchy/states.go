package hierarchy

import "fmt"

// TenantState says what a tenant's keys may be used for.
type TenantState uint8

const (
	TenantEnabled     TenantState = iota + 1
	TenantDisabled                // by an operator; nothing is served
	TenantSuspended               // by a forced promotion only; released by quorum
	TenantOffboarding             // disabled, waiting to be destroyed
	TenantDestroyed               // its objects are gone; its name is never given again
)

var tenantStates = [...]string{TenantEnabled: "enabled", TenantDisabled: "disabled", TenantSuspended: "suspended", TenantOffboarding: "offboarding", TenantDestroyed: "destroyed"}

func (s TenantState) String() string { return stateName(tenantStates[:], uint8(s)) }

// VersionState is the state of a key version (NIST SP 800-57 part 1 rev. 5, section 7).
type VersionState uint8

const (
	PreActive   VersionState = iota + 1 // being minted; not used yet
	Active                              // wraps and unwraps
	Deactivated                         // unwraps only: a newer version is active
	Suspended                           // not used, until resumed
	Compromised                         // unwraps only, and only for rewrap
	Destroyed                           // its objects are gone
)

var versionStates = [...]string{PreActive: "pre-active", Active: "active", Deactivated: "deactivated", Suspended: "suspended", Compromised: "compromised", Destroyed: "destroyed"}

func (s VersionState) String() string { return stateName(versionStates[:], uint8(s)) }

func stateName(names []string, s uint8) string {
	if int(s) < len(names) && names[s] != "" {
		return names[s]
	}
	return fmt.Sprintf("state(%d)", s)
}

// RegionRole says what the nodes of a region do.
type RegionRole uint8

const (
	RoleVoting  RegionRole = iota + 1 // votes, has an HSM, serves
	RoleReplica                       // does not vote, has an HSM, serves while its lease holds
	RoleWitness                       // votes, has no HSM, serves nothing
)

var regionRoles = [...]string{RoleVoting: "voting", RoleReplica: "replica", RoleWitness: "witness"}

func (r RegionRole) String() string { return stateName(regionRoles[:], uint8(r)) }

// ParseRegionRole reads what [RegionRole.String] writes.
func ParseRegionRole(name string) (RegionRole, error) {
	for r, n := range regionRoles {
		if n == name && n != "" {
			return RegionRole(r), nil
		}
	}
	return 0, fmt.Errorf("%w: role %q: it is voting, replica or witness", ErrInvalidArgument, name)
}
