package grpc

import (
	"encoding/json"
	"errors"
)

// NodeKey is the field of a client's node metadata that holds the name of the Kubernetes node that it runs on. Its
// node.id cannot hold that: it distinguishes clients, and many run on one node.
const NodeKey = "NODE_NAME"

// Bootstrap is the xDS bootstrap configuration of a gRPC program, in $GRPC_XDS_BOOTSTRAP (a file) or
// $GRPC_XDS_BOOTSTRAP_CONFIG (the text itself).
type Bootstrap struct {
	// Servers are gRPC targets of the control plane. The first is used, and a later one only by a client that cannot
	// reach those before and lacks something (gRFC A71). So replicas belong behind one name, dns:///name:port, of which
	// a client tries all addresses.
	Servers []string

	ID   string // Distinguishes the client from others: the pod's namespace/name, say.
	Node string // The Kubernetes node that it runs on, for topology hints and Local traffic policies; may be empty.
	Zone string // The zone of the client, for a control plane that does not know the node; may be empty.

	Insecure bool   // Plaintext. Else TLS.
	CAFile   string // The CAs that the server's certificate is verified with; empty for the system's.
	// TokenFile holds a token by which the client authenticates itself (gRFC A97). gRPC sends none over plaintext, and uses
	// it only with GRPC_EXPERIMENTAL_XDS_BOOTSTRAP_CALL_CREDS=true in its environment. Empty for none.
	TokenFile string
}

// The form of the bootstrap is set by gRFC A27, with A65 for tls and A97 for call credentials.
type (
	bootstrapJSON struct {
		Servers []serverJSON `json:"xds_servers"`
		Node    nodeJSON     `json:"node"`
	}
	serverJSON struct {
		URI      string            `json:"server_uri"`
		Channel  []credentialsJSON `json:"channel_creds"`
		Call     []credentialsJSON `json:"call_creds,omitempty"`
		Features []string          `json:"server_features"`
	}
	credentialsJSON struct {
		Type   string            `json:"type"`
		Config map[string]string `json:"config,omitempty"`
	}
	nodeJSON struct {
		ID       string            `json:"id"`
		Cluster  string            `json:"cluster"`
		Locality map[string]string `json:"locality"` // Node.js insists on it, empty as it may be.
		Metadata map[string]string `json:"metadata,omitempty"`
	}
)

// JSON returns the bootstrap on one line. The error names what is missing or does not go together.
func (b Bootstrap) JSON() ([]byte, error) {
	switch {
	case len(b.Servers) == 0:
		return nil, errors.New("no server: name the control plane's, such as dns:///fairlead.fairlead-system:18000")
	case b.ID == "":
		return nil, errors.New("no id: give each client one of its own, such as the pod's namespace/name")
	case b.Insecure && b.CAFile != "":
		return nil, errors.New("a CA without TLS: leave one of the two out")
	case b.Insecure && b.TokenFile != "":
		return nil, errors.New("a token without TLS: anybody on the way could read it, so gRPC does not send it")
	}
	out := bootstrapJSON{Node: nodeJSON{ID: b.ID, Cluster: "fairlead", Locality: map[string]string{}}}
	for _, uri := range b.Servers {
		out.Servers = append(out.Servers, b.server(uri))
	}
	if b.Zone != "" {
		out.Node.Locality["zone"] = b.Zone
	}
	if b.Node != "" {
		out.Node.Metadata = map[string]string{NodeKey: b.Node}
	}
	return json.Marshal(out)
}

// server returns how to reach one server.
func (b Bootstrap) server(uri string) serverJSON {
	s := serverJSON{URI: uri, Channel: []credentialsJSON{{Type: "insecure"}}, Features: []string{"xds_v3"}}
	if !b.Insecure {
		s.Channel[0] = credentialsJSON{Type: "tls"}
	}
	if b.CAFile != "" {
		s.Channel[0].Config = map[string]string{"ca_certificate_file": b.CAFile}
	}
	if b.TokenFile != "" {
		s.Call = []credentialsJSON{{Type: "jwt_token_file", Config: map[string]string{"jwt_token_file": b.TokenFile}}}
	}
	return s
}
