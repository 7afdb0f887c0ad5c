package cluster

import (
	"bytes"
	"fmt"
	"os"
	"sync"

	"github.com/kekd/kekd/hierarchy/state"
)

var (
	dbgMu  sync.Mutex
	dbgAll = map[*fsm]map[uint64]*state.State{}
	dbgRaw = map[*fsm]map[uint64]string{}
)

func dbg(f *fsm, s *state.State, raw []byte) {
	dbgMu.Lock()
	defer dbgMu.Unlock()
	if dbgAll[f] == nil {
		dbgAll[f] = map[uint64]*state.State{}
		dbgRaw[f] = map[uint64]string{}
	}
	dbgAll[f][s.Index()] = s
	dbgRaw[f][s.Index()] = string(raw)
}

func dbgDump(index uint64) {
	dbgMu.Lock()
	defer dbgMu.Unlock()
	n := 0
	for f, m := range dbgAll {
		n++
		for i := index - 5; i <= index; i++ {
			s, ok := m[i]
			if !ok {
				continue
			}
			h := s.Hash()
			c, _ := state.Decode([]byte(dbgRaw[f][i]))
			fmt.Fprintf(os.Stderr, "DBG fsm %d index %d hash %x: %v\n", n, i, h[:4], c)
			if i == index {
				var b bytes.Buffer
				state.Write(&b, s)
				os.WriteFile(fmt.Sprintf("/dev/shm/simh/dbg-%d-%d.bin", n, i), b.Bytes(), 0o600)
			}
		}
	}
}
