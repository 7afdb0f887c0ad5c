package netfault

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Owners is a [Who] that asks the kernel which of the processes holds the client's end. Processes are by
// the names of their nodes, and may be others each time. Their descriptors have to be readable: they are of
// this user, or this is root.
func Owners(processes func() map[string]int) Who {
	return func(client, server net.Addr) string {
		socket, err := socketOf(client, server)
		if err != nil || socket == "" {
			return "" // it has gone again
		}
		for name, pid := range processes() {
			if holds(pid, socket) {
				return name
			}
		}
		return ""
	}
}

// socketOf is what the descriptors of a TCP socket over IPv4 are links to, found by its own and its peer's
// address (proc_net_tcp in the kernel's documentation); empty: there is none.
func socketOf(own, peer net.Addr) (string, error) {
	local, err := inTable(own)
	if err != nil {
		return "", err
	}
	remote, err := inTable(peer)
	if err != nil {
		return "", err
	}
	f, err := os.Open("/proc/net/tcp")
	if err != nil {
		return "", err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 10 || fields[1] != local || fields[2] != remote {
			continue
		}
		if _, err := strconv.ParseUint(fields[9], 10, 64); err != nil || fields[9] == "0" {
			return "", err // without an inode nobody holds it any more
		}
		return "socket:[" + fields[9] + "]", nil
	}
	return "", lines.Err()
}

// inTable is an address as /proc/net/tcp has it: the four bytes as a number of this machine, which is
// little-endian.
func inTable(a net.Addr) (string, error) {
	tcp, ok := a.(*net.TCPAddr)
	if !ok || tcp.IP.To4() == nil {
		return "", fmt.Errorf("%v is no TCP address over IPv4", a)
	}
	ip := tcp.IP.To4()
	return fmt.Sprintf("%02X%02X%02X%02X:%04X", ip[3], ip[2], ip[1], ip[0], tcp.Port), nil
}

func holds(pid int, socket string) bool {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return false // it has ended
	}
	for _, e := range entries {
		if link, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil && link == socket {
			return true
		}
	}
	return false
}
