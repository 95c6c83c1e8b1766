package controlplane

import (
	"context"

	"github.com/fairlead/fairlead/server/xds"
)

// What clients may ask for. One that holds a valid token must not take the memory that all others need.
var (
	// An agent names every resource that its node has, in a first request of any size, and needs one stream. The last one of
	// an agent that has been replaced may count until its connection is found to be dead.
	agentLimits = xds.Limits{Streams: 16}

	// A gRPC program names what it dials, some tens of resources of less than a hundred bytes each. Its library may open a
	// stream for each Service that it dials, as gRPC's proposal A71 has it.
	programLimits = xds.Limits{RequestBytes: 64 << 10, Names: 1000, Streams: 16}

	// Programs without a token are known by their address, which those of a node may share.
	anonymousLimits = xds.Limits{RequestBytes: 64 << 10, Names: 1000, Streams: 256}
)

// authenticate decides, for xDS, who a client is and how much it may ask for.
func (s *Server) authenticate(ctx context.Context) (xds.Client, error) {
	who, err := s.cfg.Identity.Authenticate(ctx)
	if err != nil {
		return xds.Client{}, err
	}
	limits := programLimits
	switch {
	case who.Agent:
		limits = agentLimits
	case who.Name == "":
		limits = anonymousLimits
	}
	return xds.Client{Identity: who.Name, Until: who.Expires, Limits: limits}, nil
}
