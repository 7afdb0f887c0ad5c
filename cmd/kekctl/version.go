package main

import (
	"io"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// version is set by the linker (-X main.version=...) where a build has one.
var version string

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "The version of kekctl",
		Args:  arguments(),
		RunE: func(*cobra.Command, []string) error {
			v := buildVersion()
			return a.print(struct {
				Version string `json:"version"`
			}{v}, func(w io.Writer) { row(w, "kekctl", v) })
		},
	}
}

func buildVersion() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}
