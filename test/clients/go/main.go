// Command go is the test client for grpc-go. What it does is said in the README of the folder above.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	_ "google.golang.org/grpc/xds" // For xds:/// targets.

	"github.com/fairlead/fairlead/test/clients/backend"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// run carries out one order after the other.
func run() error {
	conns := map[string]*grpc.ClientConn{}
	orders, reports := bufio.NewScanner(os.Stdin), json.NewEncoder(os.Stdout)
	for orders.Scan() {
		var calls int
		var target string
		if _, err := fmt.Sscan(orders.Text(), &calls, &target); err != nil {
			return fmt.Errorf("order %q: %w", orders.Text(), err)
		}
		if conns[target] == nil {
			conn, err := grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()))
			if err != nil {
				return err
			}
			conns[target] = conn
		}
		if err := reports.Encode(call(conns[target], calls)); err != nil {
			return err
		}
	}
	return orders.Err()
}

type report struct {
	Answers map[string]int `json:"answers"`
	Errors  map[string]int `json:"errors"`
}

// call makes calls and counts what comes of them.
func call(conn *grpc.ClientConn, calls int) report {
	r := report{map[string]int{}, map[string]int{}}
	for range calls {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		name, err := backend.Ask(ctx, conn)
		cancel()
		if err == nil {
			r.Answers[name]++
			continue
		}
		s := status.Convert(err)
		r.Errors[s.Code().String()+": "+s.Message()]++
	}
	return r
}
