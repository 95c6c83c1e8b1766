package inspect

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"k8s.io/apimachinery/pkg/util/duration"

	"github.com/fairlead/fairlead/server/ops/reach"
)

// StatusFormats are the forms of a status. The first is the default; wide is the same with more columns.
var StatusFormats = []string{"table", "wide", "json", "yaml"}

// Status prints the state of a control plane and of all nodes, in one of StatusFormats. It returns one of this package's
// errors if something asks for attention.
func Status(ctx context.Context, replicas reach.Replicas, format string, w io.Writer) error {
	report, err := Ask(ctx, replicas)
	if err != nil {
		return err
	}
	if err := report.write(w, format); err != nil {
		return err
	}
	return report.Err()
}

// watchInterval is how often Watch asks.
const watchInterval = 2 * time.Second

// Watch prints the state, and again each time that it has changed, until ctx ends. It returns what Status would return then.
// Numbers that change all the time, such as a lag, are no change.
func Watch(ctx context.Context, replicas reach.Replicas, format string, w io.Writer) error {
	return watch(ctx, replicas, format, watchInterval, w)
}

func watch(ctx context.Context, replicas reach.Replicas, format string, every time.Duration, w io.Writer) error {
	var before []byte
	var last error
	for {
		report, err := Ask(ctx, replicas)
		if ctx.Err() != nil {
			return last
		}
		var now bytes.Buffer
		if err == nil {
			last = report.Err()
			if err := Encode(&now, "json", report.lasting()); err != nil {
				return err
			}
		} else {
			last = err
			now.WriteString(err.Error())
		}
		if !bytes.Equal(now.Bytes(), before) {
			if err := writeChange(w, format, report, last, before == nil); err != nil {
				return err
			}
		}
		before = now.Bytes()
		select {
		case <-ctx.Done():
			return last
		case <-time.After(every):
		}
	}
}

// writeChange writes a report that differs from the one before, or why there is none.
func writeChange(w io.Writer, format string, r Report, err error, first bool) error {
	if !first {
		separator := map[string]string{"yaml": "---\n", "json": ""}
		s, structured := separator[format]
		if !structured {
			s = "\n" + time.Now().Format(time.TimeOnly) + "\n"
		}
		fmt.Fprint(w, s)
	}
	if r.Replicas == nil && (format == "table" || format == "wide") {
		_, err := fmt.Fprintln(w, err)
		return err
	}
	return r.write(w, format)
}

// lasting returns the report without what changes all the time.
func (r Report) lasting() Report {
	nodes := make([]Node, len(r.Nodes))
	for i, n := range r.Nodes {
		n.LagSeconds, n.Applied, n.Types = 0, 0, nil
		nodes[i] = n
	}
	replicas := make([]Replica, len(r.Replicas))
	for i, replica := range r.Replicas {
		replica.Publish = 0
		replicas[i] = replica
	}
	r.Nodes, r.Replicas = nodes, replicas
	return r
}

// write writes the report in one of StatusFormats.
func (r Report) write(w io.Writer, format string) error {
	switch format {
	case "json", "yaml":
		return Encode(w, format, r)
	case "table", "wide":
		return r.print(w, format == "wide")
	}
	return fmt.Errorf("format %q: choose one of %q", format, StatusFormats)
}

// print writes tables.
func (r Report) print(w io.Writer, wide bool) error {
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprintln(t, "REPLICA\tREADY\tSERVICES\tFRONTENDS\tENDPOINTS\tNODES\tVERSION")
	for _, replica := range r.Replicas {
		if !replica.Reached {
			fmt.Fprintf(t, "%s\tno answer\t-\t-\t-\t-\t-\n", replica.Replica)
			continue
		}
		ready := "yes"
		if !replica.Ready {
			ready = "no"
		}
		of := replica.World
		fmt.Fprintf(t, "%s\t%s\t%d\t%d\t%d\t%d\t%s\n", replica.Replica, ready, of.Services, of.Frontends, of.Endpoints, of.Nodes, orDash(replica.Version))
	}
	t.Flush()
	for _, replica := range r.Replicas {
		if replica.Reason != "" {
			fmt.Fprintf(w, "  %s: %s\n", replica.Replica, replica.Reason)
		}
	}
	if len(r.Nodes) > 0 {
		fmt.Fprintln(w)
		r.printNodes(w, wide)
	}
	if len(r.Problems) > 0 {
		fmt.Fprintf(w, "\nPROBLEMS\n")
	}
	for _, p := range r.Problems {
		fmt.Fprintf(w, "  %s: %s: %s\n", p.Object, p.Reason, p.Message)
	}
	return nil
}

// printNodes prints a row for each node, and below the table the reasons, which are sentences.
func (r Report) printNodes(w io.Writer, wide bool) {
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprint(t, "NODE\tSTATE\tFOR\tVERSION")
	if wide {
		fmt.Fprint(t, "\tREPLICA\tPUBLISH\tLAG")
	}
	fmt.Fprintln(t)
	for _, n := range r.Nodes {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s", n.Node.Node, n.State, duration.HumanDuration(time.Since(n.Since)), orDash(n.Version))
		if wide {
			fmt.Fprintf(t, "\t%s\t%d\t%.1fs", orDash(n.Replica), n.Applied, n.LagSeconds)
		}
		fmt.Fprintln(t)
	}
	t.Flush()
	reasons := map[string]string{}
	for _, n := range r.Nodes {
		if n.Reason != "" {
			reasons[n.Node.Node] = n.Reason
		}
	}
	for _, line := range byReason(reasons) {
		fmt.Fprintln(w, "  "+line)
	}
}

// orDash returns a dash in the place of nothing, so that columns can be counted.
func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
