package hostcheck

import (
	"fmt"
	"io"
	"text/tabwriter"
)

// Print writes the results as a table, and below it what was found with what to do about it.
func Print(w io.Writer, results []Result) error {
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprintln(t, "CHECK\tRESULT")
	for _, r := range results {
		fmt.Fprintf(t, "%s\t%s\n", r.Check, r.Level)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, r := range results {
		if r.Found != "" {
			fmt.Fprintf(w, "\n%s: %s\n", r.Check, r.Found)
		}
		if r.Fix != "" {
			fmt.Fprintf(w, "  fix: %s\n", r.Fix)
		}
	}
	return nil
}
