package softhsm

import (
	"fmt"
	"os"
)

// Unshadowed lists the files of tokens that have no copy: the next crash in the middle of a change may
// lose them. A file that is just being made is among them for as long as that takes.
func (d *Dir) Unshadowed() ([]string, error) {
	tokens, err := subdirs(d.join(tokensName))
	if err != nil {
		return nil, fmt.Errorf("token directory: %w", err)
	}
	var bare []string
	for _, t := range tokens {
		names, err := files(d.join(tokensName, t))
		if err != nil {
			return nil, fmt.Errorf("token directory: %w", err)
		}
		for _, n := range names {
			r := ref{t, n}
			if !isObject(n) {
				continue
			}
			if _, err := os.Lstat(d.shadowFile(r)); err != nil {
				bare = append(bare, r.String())
			}
		}
	}
	return bare, nil
}
