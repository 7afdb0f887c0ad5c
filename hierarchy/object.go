package hierarchy

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
)

// ObjectRole says what a key object in a token is for.
type ObjectRole uint8

const (
	// RoleKEK is the region's own KEK of a key version: it seals and opens in that region.
	RoleKEK ObjectRole = iota + 1
	// RoleBridge is a directed key between two regions: it seals in the one and opens in the other.
	RoleBridge
)

// ObjectID is the CKA_ID of a key object, 20 bytes: derived, never drawn, so that who tries
// again to make an object finds the one that was made before.
type ObjectID [20]byte

func (id ObjectID) String() string { return hex.EncodeToString(id[:]) }

// KEKObjectID names the KEK of a key version in one region. The attempt is raised when a
// minting is started anew.
func KEKObjectID(cluster ClusterID, tenant TenantID, key KeyID, version uint32, region RegionID, attempt uint32) ObjectID {
	return objectID(RoleKEK, cluster, tenant, key, version, region, RegionID{}, attempt)
}

// BridgeObjectID names the bridge that seals in region from and opens in region to. Both
// tokens hold it under the same ID.
func BridgeObjectID(cluster ClusterID, tenant TenantID, key KeyID, version uint32, from, to RegionID, attempt uint32) ObjectID {
	return objectID(RoleBridge, cluster, tenant, key, version, from, to, attempt)
}

func objectID(role ObjectRole, cluster ClusterID, tenant TenantID, key KeyID, version uint32, from, to RegionID, attempt uint32) ObjectID {
	// All fields have a fixed length, so the concatenation is injective.
	b := make([]byte, 0, 128)
	b = append(b, "kekd object v1\x00"...)
	b = append(b, byte(role))
	b = append(b, cluster.ID[:]...)
	b = append(b, tenant.ID[:]...)
	b = append(b, key.ID[:]...)
	b = binary.BigEndian.AppendUint32(b, version)
	b = append(b, from.ID[:]...)
	b = append(b, to.ID[:]...)
	b = binary.BigEndian.AppendUint32(b, attempt)
	sum := sha256.Sum256(b)
	return ObjectID(sum[:20])
}

// CheckValue is the key check value of a secret key, CKA_CHECK_VALUE: the first three bytes
// of a zero block encrypted in ECB (PKCS#11 v2.40, section 4.10.2). It identifies, and proves
// nothing: 24 bits.
type CheckValue [3]byte

func (v CheckValue) String() string { return hex.EncodeToString(v[:]) }
