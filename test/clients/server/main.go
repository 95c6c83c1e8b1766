// Command server is a gRPC backend for trying things out: server NAME ADDRESS answers every call with its name.
package main

import (
	"fmt"
	"net"
	"os"

	"github.com/fairlead/fairlead/test/clients/backend"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("usage: server NAME ADDRESS")
	}
	listener, err := net.Listen("tcp", args[1])
	if err != nil {
		return err
	}
	return backend.New(args[0]).Serve(listener)
}
