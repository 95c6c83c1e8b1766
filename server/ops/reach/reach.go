// Package reach finds the replicas of a control plane and the way to their admin ports, for the commands that query them.
//
// In come addresses, or a kubeconfig and the Service of the replicas; out go addresses on this machine. What names objects is
// answered on a replica's loopback alone, so that it takes the right to forward ports into its pod to read it: there is no
// other door. The package asks nothing itself, and changes nothing.
package reach

import (
	"context"
	"errors"
)

// Replica is one replica of a control plane.
type Replica struct {
	Name    string // The pod's, or the address.
	Address string // The host:port of its admin port as this machine reaches it; empty if Err is set.
	Err     error  // Why it cannot be reached.
}

// Replicas is a way to the replicas. Its methods are for one goroutine.
type Replicas interface {
	// List returns the replicas that there are now, at least one, by name. A replica that cannot be reached is one of them.
	List(context.Context) ([]Replica, error)
	// Versions returns the resource versions that the API server has of a Service, as NAMESPACE/NAME, and of its EndpointSlices that
	// hold addresses, by object as in kind namespace/name. It returns nothing if there is no API server that could be asked.
	Versions(ctx context.Context, service string) (map[string]string, error)
	// Namespace is that of objects that are named without one.
	Namespace() string
	// Close ends the way.
	Close()
}

// Fixed is addresses that are known.
type Fixed []string

// List implements Replicas.
func (f Fixed) List(context.Context) ([]Replica, error) {
	if len(f) == 0 {
		return nil, errors.New("no address of a control plane's admin port")
	}
	all := make([]Replica, len(f))
	for i, a := range f {
		all[i] = Replica{Name: a, Address: a}
	}
	return all, nil
}

// Versions implements Replicas.
func (Fixed) Versions(context.Context, string) (map[string]string, error) { return nil, nil }

// Namespace implements Replicas.
func (Fixed) Namespace() string { return "default" }

// Close implements Replicas.
func (Fixed) Close() {}
