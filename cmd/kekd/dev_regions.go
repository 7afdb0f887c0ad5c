package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/kekd/kekd/hierarchy"
)

// devRegion is one region of a dev cluster, written NAME=ROLE*COUNT.
type devRegion struct {
	Name  string `json:"name"`
	Role  string `json:"role"`
	Count int    `json:"count"`
}

// Roles of regions, as in hierarchy.RegionRole's text.
const (
	roleVoting  = "voting"
	roleReplica = "replica"
	roleWitness = "witness"
)

// maxDevNodes is what a machine of one's own has memory for: each node has three processes.
const maxDevNodes = 32

func (r devRegion) String() string {
	if r.Count == 1 {
		return r.Name + "=" + r.Role
	}
	return fmt.Sprintf("%s=%s*%d", r.Name, r.Role, r.Count)
}

// flagsOf is how a cluster's regions are given on the command line.
func flagsOf(regions []devRegion) string {
	var flags []string
	for _, r := range regions {
		flags = append(flags, "--region "+r.String())
	}
	return strings.Join(flags, " ")
}

// oneNode is the dev cluster that nobody has said anything about.
var oneNode = []devRegion{{Name: "local", Role: roleVoting, Count: 1}}

// parseRegions reads the --region flags. None is no error, and no region.
func parseRegions(flags []string) ([]devRegion, error) {
	var regions []devRegion
	nodes := 0
	for _, flag := range flags {
		r, err := parseRegion(flag)
		if err != nil {
			return nil, fmt.Errorf("--region %s: %w", flag, err)
		}
		if slices.ContainsFunc(regions, func(other devRegion) bool { return other.Name == r.Name }) {
			return nil, fmt.Errorf("--region %s: the region is named twice", flag)
		}
		if len(regions) == 0 && r.Role != roleVoting {
			return nil, fmt.Errorf("--region %s: the first region has to be a voting one: its first node makes the cluster", flag)
		}
		if nodes += r.Count; nodes > maxDevNodes {
			return nil, fmt.Errorf("--region %s: these are %d nodes so far, kekd dev runs at most %d", flag, nodes, maxDevNodes)
		}
		regions = append(regions, r)
	}
	return regions, nil
}

func parseRegion(flag string) (devRegion, error) {
	const form = "it is written NAME=ROLE or NAME=ROLE*COUNT, such as eu-west=voting*3"
	name, rest, ok := strings.Cut(flag, "=")
	if !ok {
		return devRegion{}, errors.New(form)
	}
	if err := hierarchy.ValidateName(name); err != nil {
		return devRegion{}, err
	}
	r := devRegion{Name: name, Count: 1}
	role, count, counted := strings.Cut(rest, "*")
	if !slices.Contains([]string{roleVoting, roleReplica, roleWitness}, role) {
		return devRegion{}, fmt.Errorf("the role %q is none of voting, replica and witness; %s", role, form)
	}
	r.Role = role
	if counted {
		n, err := strconv.Atoi(count)
		if err != nil || n < 1 || n > maxDevNodes {
			return devRegion{}, fmt.Errorf("the count %q is not between 1 and %d; %s", count, maxDevNodes, form)
		}
		r.Count = n
	}
	// The nodes are called after their region, and names have their limit.
	return r, hierarchy.ValidateName(r.nodeName(r.Count))
}

// nodeName is that of the region's n-th node, from 1.
func (r devRegion) nodeName(n int) string { return fmt.Sprintf("%s-%d", r.Name, n) }

// keepRegions returns which regions the cluster in dir has: those that it was made with, or for a new one
// those that were asked for, which it notes.
func keepRegions(dir string, asked []devRegion) ([]devRegion, error) {
	path := filepath.Join(dir, "regions.json")
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if asked == nil {
			asked = oneNode
		}
		if _, err := os.Lstat(filepath.Join(dir, "nodes")); err == nil && !slices.Equal(asked, oneNode) {
			// Of before there was more than one.
			return nil, otherRegions(dir, oneNode)
		}
		b, err := json.MarshalIndent(asked, "", "  ")
		if err != nil {
			return nil, err
		}
		return asked, writeFileAtomic(path, append(b, '\n'), 0o644)
	}
	if err != nil {
		return nil, err
	}
	var there []devRegion
	if err := json.Unmarshal(b, &there); err != nil || len(there) == 0 {
		return nil, fmt.Errorf("%s cannot be read (%v): write into it what --region said when the cluster was made", path, err)
	}
	if asked != nil && !slices.Equal(asked, there) {
		return nil, otherRegions(dir, there)
	}
	return there, nil
}

func otherRegions(dir string, there []devRegion) error {
	return fmt.Errorf("%s has a cluster of other regions: go on with it by\n  kekd dev --dir %s %s\nor give another --dir", dir, dir, flagsOf(there))
}
