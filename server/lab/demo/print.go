package demo

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/fairlead/fairlead/server/lab"
)

// printer writes for people. What cannot be written is lost: nobody reads it.
type printer struct{ out io.Writer }

func newPrinter(out io.Writer) *printer { return &printer{out} }

func (p *printer) line(format string, args ...any) { fmt.Fprintf(p.out, format+"\n", args...) }

func (p *printer) progress(what, result string, took time.Duration) {
	p.line("  %-9s %s (%.1f s)", what, result, took.Seconds())
}

func (p *printer) headline(number int, title string) {
	p.line("\n%d. %s", number, title)
}

func (p *printer) result(format string, args ...any) {
	p.line("   "+format, args...)
}

// lines writes lines to be copied.
func (p *printer) lines(lines ...string) {
	for _, l := range lines {
		p.line("%s", "    "+l)
	}
}

// table writes rows of cells in columns.
func (p *printer) table(rows [][]string) {
	w := tabwriter.NewWriter(p.out, 0, 0, 3, ' ', 0)
	for _, row := range rows {
		fmt.Fprintln(w, "   "+strings.Join(row, "\t"))
	}
	_ = w.Flush() // As with line.
}

// answers returns who answered how often, as one line.
func answers(r lab.Report) string {
	var parts []string
	for _, server := range slices.Sorted(maps.Keys(r.Answers)) {
		parts = append(parts, fmt.Sprintf("%s %d", server, r.Answers[server]))
	}
	return strings.Join(parts, ", ")
}

// milliseconds writes a latency the way people compare them.
func milliseconds(d time.Duration) string {
	return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
}
