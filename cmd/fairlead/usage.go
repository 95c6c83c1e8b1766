package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/fairlead/fairlead/server/node/hostcheck"
	"github.com/fairlead/fairlead/server/ops/inspect"
	"github.com/fairlead/fairlead/server/ops/offline"
)

// The exit codes, which scripts rely on.
const (
	exitError         = 1 // Something else went wrong.
	exitUsage         = 2 // The command line is wrong.
	exitProblems      = 3 // Objects, or a node that was checked, have problems.
	exitNotForwarding = 4 // A node does not forward what it should, or a replica is not ready.
	exitUnreachable   = 5 // A replica of the control plane does not answer.
)

// exitHelp documents the codes where they differ.
const exitHelp = `
Exit codes: 0 all is well; 1 another error; 2 the command line is wrong; 3 objects, or the node checked, have problems; 4 a node does not forward what
it should, or a replica is not ready; 5 a replica, or the API server on the way to it, does not answer. Of several, the highest.`

// exitCode returns the code of an error.
func exitCode(err error) int {
	var usage usageError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &usage), strings.HasPrefix(err.Error(), "unknown command "): // Cobra has no type for it.
		return exitUsage
	case errors.Is(err, inspect.ErrUnreachable):
		return exitUnreachable
	case errors.Is(err, inspect.ErrNotForwarding):
		return exitNotForwarding
	case errors.Is(err, inspect.ErrProblems), errors.Is(err, offline.ErrProblems), errors.Is(err, hostcheck.ErrProblems):
		return exitProblems
	}
	return exitError
}

// usageError is an error of the command line.
type usageError struct{ error }

// Unwrap returns the error.
func (e usageError) Unwrap() error { return e.error }

// usagef returns a usageError.
func usagef(format string, arguments ...any) error {
	return usageError{fmt.Errorf(format, arguments...)}
}

// choose returns an error if the value of a flag is none of those that it may have.
func choose(flag, value string, all []string) error {
	if slices.Contains(all, value) {
		return nil
	}
	return usagef("%s %q: use %s", flag, value, strings.Join(all, ", "))
}

// checkUsage has wrong flags and arguments of a command, and of those below it, reported as usageErrors. A flag that does not
// exist is answered with those that were perhaps meant.
func checkUsage(cmd *cobra.Command) {
	cmd.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usagef("%w%s (%s --help lists the flags)", err, suggestion(cmd, err), cmd.CommandPath())
	})
	if check := cmd.Args; check != nil {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			if err := check(cmd, args); err != nil {
				return usagef("%w (usage: %s)", err, cmd.UseLine())
			}
			return nil
		}
	}
	for _, sub := range cmd.Commands() {
		checkUsage(sub)
	}
}

// suggestion returns which flags somebody meant who gave one that does not exist. Cobra measures the distance between the names
// of commands, so the flags are made some.
func suggestion(cmd *cobra.Command, err error) string {
	var missing *pflag.NotExistError
	if !errors.As(err, &missing) {
		return ""
	}
	flags := &cobra.Command{SuggestionsMinimumDistance: 2}
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		flags.AddCommand(&cobra.Command{Use: f.Name, Run: func(*cobra.Command, []string) {}})
	})
	meant := flags.SuggestionsFor(missing.GetSpecifiedName())
	if len(meant) == 0 {
		return ""
	}
	return ": did you mean --" + strings.Join(meant, " or --") + "?"
}
