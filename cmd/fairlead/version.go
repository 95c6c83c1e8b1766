package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// version is the release's version, which the linker sets: -ldflags "-X main.version=v1.2.3".
var version string

func newVersionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version, the commit and the Go version",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), "fairlead", versionText())
			return err
		},
	}
}

// versionText returns the version, the commit and the Go version of the build.
func versionText() string {
	name, commit := build()
	return fmt.Sprintf("%s (commit %s, %s, %s/%s)", name, commit, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}

// build returns the version and the commit. The version is devel unless the build was given one, or was one of a module's
// version (go install ...@v1.2.3).
func build() (name, commit string) {
	name, commit = version, "unknown"
	if info, ok := debug.ReadBuildInfo(); ok {
		if name == "" && info.Main.Version != "(devel)" {
			name = info.Main.Version
		}
		if revision := commitOf(info.Settings); revision != "" {
			commit = revision
		}
	}
	if name == "" {
		name = "devel"
	}
	return name, commit
}

// commitOf returns the commit that a build was made from, marked if files had changed since; nothing if the build had no
// repository.
func commitOf(settings []debug.BuildSetting) string {
	var commit, mark string
	for _, s := range settings {
		switch {
		case s.Key == "vcs.revision":
			commit = s.Value
		case s.Key == "vcs.modified" && s.Value == "true":
			mark = ", with changes"
		}
	}
	if commit == "" {
		return ""
	}
	return commit + mark
}
