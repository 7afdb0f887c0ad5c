package main

import (
	"io"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

type keyOut struct {
	Tenant           string       `json:"tenant"`
	Key              string       `json:"key"`
	ID               string       `json:"id"`
	CreatedAt        string       `json:"created_at"`
	RotateEvery      string       `json:"rotate_every,omitempty"` // absent: by hand only
	MinUnwrapVersion uint32       `json:"min_unwrap_version"`
	Versions         []versionOut `json:"versions"`
	*fenceOut
}

type versionOut struct {
	Version     uint32      `json:"version"`
	State       string      `json:"state"`
	StateReason string      `json:"state_reason,omitempty"`
	CreatedAt   string      `json:"created_at"`
	ActivatedAt string      `json:"activated_at,omitempty"`
	Regions     []regionOut `json:"regions"`
}

type regionOut struct {
	Region        string `json:"region"`
	State         string `json:"state"`
	CKAID         string `json:"cka_id"`      // hex, as pkcs11-tool takes it
	CheckValue    string `json:"check_value"` // hex
	WrapsReserved uint64 `json:"wraps_reserved"`
}

func newKeyOut(k *kekdv1.Key) keyOut {
	out := keyOut{
		Tenant:           k.Tenant,
		Key:              k.Key,
		ID:               k.Id,
		CreatedAt:        timestamp(k.CreatedAt),
		MinUnwrapVersion: k.MinUnwrapVersion,
		Versions:         make([]versionOut, 0, len(k.Versions)),
		fenceOut:         newFenceOut(k.Fence),
	}
	if k.RotateEvery != 0 {
		out.RotateEvery = formatDuration(time.Duration(k.RotateEvery))
	}
	for _, v := range k.Versions {
		version := versionOut{
			Version:     v.Version,
			State:       v.State,
			StateReason: v.StateReason,
			CreatedAt:   timestamp(v.CreatedAt),
			ActivatedAt: timestamp(v.ActivatedAt),
			Regions:     make([]regionOut, 0, len(v.Regions)),
		}
		for _, r := range v.Regions {
			version.Regions = append(version.Regions, regionOut{r.Region, r.State, r.CkaId, r.CheckValue, r.WrapsReserved})
		}
		out.Versions = append(out.Versions, version)
	}
	return out
}

func (a *app) printKey(k *kekdv1.Key) error {
	return a.print(newKeyOut(k), func(w io.Writer) {
		row(w, "key", k.Tenant+"/"+k.Key)
		row(w, "id", k.Id)
		row(w, "created", shortTime(k.CreatedAt))
		row(w, "rotated every", rotation(k))
		row(w, "min unwrap version", k.MinUnwrapVersion)
		io.WriteString(w, "\n")
		row(w, "VERSION", "STATE", "CREATED", "REGION", "IN REGION", "CKA_ID", "CHECK", "REASON")
		for _, v := range k.Versions {
			for _, r := range v.Regions {
				row(w, v.Version, v.State, shortTime(v.CreatedAt), r.Region, r.State, r.CkaId, r.CheckValue, v.StateReason)
			}
			if len(v.Regions) == 0 {
				row(w, v.Version, v.State, shortTime(v.CreatedAt), "", "", "", "", v.StateReason)
			}
		}
		writeFence(w, k.Fence)
	})
}

func (a *app) printKeys(keys []*kekdv1.Key) error {
	out := make([]keyOut, 0, len(keys))
	for _, k := range keys {
		out = append(out, newKeyOut(k))
	}
	return a.print(out, func(w io.Writer) {
		row(w, "KEY", "ACTIVE VERSION", "VERSIONS", "MIN UNWRAP", "ROTATED EVERY", "CREATED", "ID")
		for _, k := range keys {
			active := any("")
			for _, v := range k.Versions {
				if v.State == hierarchy.Active.String() {
					active = v.Version
				}
			}
			row(w, k.Tenant+"/"+k.Key, active, len(k.Versions), k.MinUnwrapVersion, rotation(k), shortTime(k.CreatedAt), k.Id)
		}
	})
}

func rotation(k *kekdv1.Key) string {
	if k.RotateEvery == 0 {
		return "by hand"
	}
	return formatDuration(time.Duration(k.RotateEvery))
}
