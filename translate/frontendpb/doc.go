// Package frontendpb is the part of the xDS protocol that is Fairlead's own: what an agent has to know beside Envoy's
// resources. It is generated from frontend.proto by make generate.
package frontendpb
