package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// A table is printed as Markdown, so that it can be pasted where it is talked about.
type table struct {
	title string
	head  []string
	rows  [][]string
}

func (t table) print(w io.Writer) {
	fmt.Fprintf(w, "\n%s\n\n", t.title)
	fmt.Fprintf(w, "| %s |\n|%s\n", strings.Join(t.head, " | "), strings.Repeat("---|", len(t.head)))
	for _, row := range t.rows {
		fmt.Fprintf(w, "| %s |\n", strings.Join(row, " | "))
	}
}

// median returns the median of what measure says about the samples.
func median(samples []sample, measure func(sample) float64) float64 {
	values := make([]float64, 0, len(samples))
	for _, s := range samples {
		values = append(values, measure(s))
	}
	slices.Sort(values)
	return values[len(values)/2]
}

func micros(nanoseconds float64) string {
	return fmt.Sprintf("%.0f µs", nanoseconds/float64(time.Microsecond))
}

func millis(d time.Duration) string {
	return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }
