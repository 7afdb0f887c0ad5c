package custody

import (
	"fmt"
	"strings"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/state"
)

// placed refuses what this node's token has no key for, because the tenant lives in other regions. That is
// fixed when a version is made, so that it is asked once.
func (c *Custody) placed(s *state.State, g *grant) error {
	for _, v := range []*state.Version{g.open, g.seal} {
		if v == nil {
			continue
		}
		if _, here := v.Region(c.self.Region); here {
			continue
		}
		var regions []string
		for i := range v.Regions {
			regions = append(regions, regionName(s, v.Regions[i].Region))
		}
		return fmt.Errorf("%w: version %d of key %s/%s is in region %s, and this node is of %s: ask a node there",
			hierarchy.ErrFailedPrecondition, v.Number, g.tenant.Name, g.key.Name, strings.Join(regions, ", "), regionName(s, c.self.Region))
	}
	return nil
}

func regionName(s *state.State, id hierarchy.RegionID) string {
	if r, ok := s.Region(id); ok {
		return r.Name
	}
	return id.String()
}
