package worker

import (
	"os/exec"
	"runtime"
	"sync"
)

// A spawner starts processes from one thread that does not end before them: PDEATHSIG comes when
// the thread ends that has forked, and Go's threads come and go.
type spawner struct {
	starts chan func()
	ended  sync.Once
}

func newSpawner() *spawner {
	s := &spawner{starts: make(chan func())}
	go s.loop()
	return s
}

// loop starts processes, on a thread of its own.
func (s *spawner) loop() {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for start := range s.starts {
		start()
	}
}

func (s *spawner) start(cmd *exec.Cmd) error {
	err := make(chan error)
	s.starts <- func() { err <- cmd.Start() }
	return <-err
}

// close ends the thread's duty, once all its processes are gone.
func (s *spawner) close() { s.ended.Do(func() { close(s.starts) }) }
