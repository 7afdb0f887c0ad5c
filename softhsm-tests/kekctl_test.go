package softhsmtests

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/kekd/kekd/cmd/kekctl/clitest"
	"github.com/kekd/kekd/softhsm-tests/devcluster"
)

// TestKekctl runs kekctl's scripts against a real daemon, a fresh one for each.
func TestKekctl(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:  "../cmd/kekctl/testdata/daemon",
		Cmds: clitest.Commands(),
		Setup: func(env *testscript.Env) error {
			dir, err := os.MkdirTemp("", "kekd-")
			if err != nil {
				return err
			}
			c, err := devcluster.Start(t.Context(), kekd, dir)
			if err != nil {
				return err
			}
			env.Defer(func() {
				if err := c.Stop(); err != nil {
					t.Error(err)
				}
				os.RemoveAll(dir)
			})
			env.Setenv("KEKD_SOCKET", c.Nodes[0].Socket)
			env.Setenv("KEKD_ADMIN_SOCKET", c.Nodes[0].AdminSocket)
			env.Setenv("DATA_DIR", c.Nodes[0].DataDir)
			env.Setenv("PATH", filepath.Dir(kekctl)+":"+os.Getenv("PATH"))
			return nil
		},
	})
}
