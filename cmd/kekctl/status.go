package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

type statusOut struct {
	ClusterID    string   `json:"cluster_id"`
	NodeID       string   `json:"node_id"`
	NodeName     string   `json:"node_name"`
	Region       string   `json:"region"`
	Role         string   `json:"role"`
	Leader       string   `json:"leader"` // node ID; empty: none known
	Epoch        uint64   `json:"epoch"`
	AppliedIndex uint64   `json:"applied_index"`
	Fresh        bool     `json:"fresh"`
	Quarantined  bool     `json:"quarantined"`
	HSM          *hsmOut  `json:"hsm"` // null: this node has none
	Version      string   `json:"version"`
	ClusterTime  string   `json:"cluster_time"`
	AuditHealthy bool     `json:"audit_healthy"`
	DataDir      string   `json:"data_dir"`
	Warnings     []string `json:"warnings"`
}

type hsmOut struct {
	Label   string `json:"label"`
	Model   string `json:"model"`
	Serial  string `json:"serial"`
	Healthy bool   `json:"healthy"`
	Fault   string `json:"fault,omitempty"`
	Objects uint64 `json:"objects"`

	ObjectsUsed     uint64 `json:"objects_used"`
	ObjectsLeft     uint64 `json:"objects_left"`
	ObjectsReserved uint64 `json:"objects_reserved"`
	ObjectsMax      uint64 `json:"objects_max"`
}

func (a *app) statusCommand() *cobra.Command {
	var watch bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "How this node and its HSM are",
		Args:  arguments(),
	}
	cmd.Flags().BoolVar(&watch, "watch", false, "show it anew each second, with the other members, until interrupted")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if watch {
			return a.watchStatus(cmd)
		}
		s, err := a.status(cmd)
		if err != nil {
			return err
		}
		return a.print(newStatusOut(s), func(w io.Writer) { statusTable(w, s) })
	}
	return cmd
}

func newStatusOut(s *kekdv1.Status) statusOut {
	out := statusOut{
		ClusterID:    s.ClusterId,
		NodeID:       s.NodeId,
		NodeName:     s.NodeName,
		Region:       s.Region,
		Role:         s.Role,
		Leader:       s.Leader,
		Epoch:        s.Epoch,
		AppliedIndex: s.AppliedIndex,
		Fresh:        s.Fresh,
		Quarantined:  s.Quarantined,
		Version:      s.Version,
		ClusterTime:  timestamp(s.ClusterTime),
		AuditHealthy: s.AuditHealthy,
		DataDir:      s.DataDir,
		Warnings:     append([]string{}, s.Warnings...),
	}
	if h := s.Hsm; h != nil {
		out.HSM = &hsmOut{h.Label, h.Model, h.Serial, h.Healthy, h.Fault, h.Objects,
			h.ObjectsUsed, h.ObjectsLeft, h.ObjectsReserved, h.ObjectsMax}
	}
	return out
}

func statusTable(w io.Writer, s *kekdv1.Status) {
	row(w, "cluster", s.ClusterId)
	row(w, "node", fmt.Sprintf("%s (%s)", s.NodeId, s.NodeName))
	row(w, "region", fmt.Sprintf("%s (%s)", s.Region, s.Role))
	row(w, "leader", s.Leader)
	row(w, "epoch", s.Epoch)
	row(w, "applied index", s.AppliedIndex)
	row(w, "cluster time", shortTime(s.ClusterTime))
	row(w, "fresh", yesNo(s.Fresh))
	row(w, "quarantined", yesNo(s.Quarantined))
	if h := s.Hsm; h != nil {
		row(w, "hsm", fmt.Sprintf("%s (%s, serial %s, %d objects)", h.Label, h.Model, h.Serial, h.Objects))
		health := "healthy"
		if !h.Healthy {
			health = "SICK: " + h.Fault
		}
		row(w, "hsm health", health)
		row(w, "hsm room", fmt.Sprintf("%d of %d objects used, %d left, %d of them for rotations", h.ObjectsUsed, h.ObjectsMax, h.ObjectsLeft, min(h.ObjectsReserved, h.ObjectsLeft)))
	} else {
		row(w, "hsm", "none")
	}
	audit := "healthy"
	if !s.AuditHealthy {
		audit = "SICK: cannot be written"
	}
	row(w, "audit", audit)
	row(w, "data", s.DataDir)
	row(w, "version", s.Version)
	for _, text := range s.Warnings {
		row(w, "warning", text)
	}
}
