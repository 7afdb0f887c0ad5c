package main

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// What each command prints stands in docs/KEKCTL.md, and no command stands there that is none. The first
// cell of a row names commands in full, or the first of a group in full and others after it by their last
// words.
func TestCommandsAreDocumented(t *testing.T) {
	text, err := os.ReadFile("../../docs/KEKCTL.md")
	if err != nil {
		t.Fatal(err)
	}
	var commands []string
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		for _, child := range c.Commands() {
			walk(child)
		}
		if !c.HasSubCommands() {
			commands = append(commands, strings.TrimPrefix(c.CommandPath(), "kekctl "))
		}
	}
	walk((&app{}).root())

	quoted := regexp.MustCompile("`([a-z -]+)`")
	var documented []string
	_, table, _ := strings.Cut(string(text), "| command | result |")
	for line := range strings.Lines(table) {
		cells := strings.Split(line, "|")
		if len(cells) < 3 {
			if len(documented) > 0 {
				break
			}
			continue
		}
		group := ""
		for _, m := range quoted.FindAllStringSubmatch(cells[1], -1) {
			name := m[1]
			for prefix := group; !slices.Contains(commands, name) && prefix != ""; {
				name = prefix + " " + m[1]
				cut := strings.LastIndex(prefix, " ")
				prefix = prefix[:max(cut, 0)]
			}
			if !slices.Contains(commands, name) {
				t.Errorf("%q is documented, and there is no such command", m[1])
				continue
			}
			documented = append(documented, name)
			group = name[:max(strings.LastIndex(name, " "), 0)]
		}
	}
	for _, c := range commands {
		if !slices.Contains(documented, c) {
			t.Errorf("%s is not documented", c)
		}
	}
}
