package grpc

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestBootstrap(t *testing.T) {
	tests := []struct {
		name string
		in   Bootstrap
		want string
	}{
		{"plaintext", Bootstrap{Servers: []string{"dns:///fairlead:18000"}, ID: "default/web-1", Insecure: true},
			`{"xds_servers":[{"server_uri":"dns:///fairlead:18000","channel_creds":[{"type":"insecure"}],"server_features":["xds_v3"]}],` +
				`"node":{"id":"default/web-1","cluster":"fairlead","locality":{}}}`},
		{"all there is", Bootstrap{Servers: []string{"a:1", "b:2"}, ID: "i", Node: "n1", Zone: "z1", CAFile: "/ca.crt", TokenFile: "/token"},
			`{"xds_servers":[` +
				`{"server_uri":"a:1","channel_creds":[{"type":"tls","config":{"ca_certificate_file":"/ca.crt"}}],"call_creds":[{"type":"jwt_token_file","config":{"jwt_token_file":"/token"}}],"server_features":["xds_v3"]},` +
				`{"server_uri":"b:2","channel_creds":[{"type":"tls","config":{"ca_certificate_file":"/ca.crt"}}],"call_creds":[{"type":"jwt_token_file","config":{"jwt_token_file":"/token"}}],"server_features":["xds_v3"]}],` +
				`"node":{"id":"i","cluster":"fairlead","locality":{"zone":"z1"},"metadata":{"NODE_NAME":"n1"}}}`},
		{"TLS with the system's roots", Bootstrap{Servers: []string{"a:1"}, ID: "i"},
			`{"xds_servers":[{"server_uri":"a:1","channel_creds":[{"type":"tls"}],"server_features":["xds_v3"]}],"node":{"id":"i","cluster":"fairlead","locality":{}}}`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := tt.in.JSON()
			if err != nil || string(got) != tt.want {
				t.Errorf("got  %s, %v\nwant %s", got, err, tt.want)
			}
		})
	}
}

func TestBootstrapNamesWhatIsWrong(t *testing.T) {
	for want, b := range map[string]Bootstrap{
		"no server":           {ID: "i"},
		"no id":               {Servers: []string{"a:1"}},
		"a CA without TLS":    {Servers: []string{"a:1"}, ID: "i", Insecure: true, CAFile: "f"},
		"a token without TLS": {Servers: []string{"a:1"}, ID: "i", Insecure: true, TokenFile: "f"},
	} {
		if _, err := b.JSON(); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("error is %v, want %s", err, want)
		}
	}
}

// FuzzBootstrap writes a bootstrap of whatever the flags and the environment say: it is JSON that says the same, or there is a
// reason.
func FuzzBootstrap(f *testing.F) {
	f.Add("dns:///fairlead:18000", "default/web-1", "n1", "z1", "/ca.crt", "/token", false)
	f.Add("", "", "", "", "", "", true)
	f.Add("a\n\"b", "\u2028", "{}", "\\", "<&>", "\x00", false)
	f.Fuzz(func(t *testing.T, server, id, node, zone, ca, token string, insecure bool) {
		text, err := Bootstrap{Servers: []string{server}, ID: id, Node: node, Zone: zone, CAFile: ca, TokenFile: token, Insecure: insecure}.JSON()
		if err != nil {
			return
		}
		var got bootstrapJSON
		if err := json.Unmarshal(text, &got); err != nil || strings.Contains(string(text), "\n") {
			t.Fatalf("%q: %v", text, err)
		}
		if !utf8.ValidString(server + id + node + zone) {
			return // JSON has no way to say it.
		}
		if got.Servers[0].URI != server || got.Node.ID != id || got.Node.Metadata[NodeKey] != node || got.Node.Locality["zone"] != zone {
			t.Errorf("%q says something else", text)
		}
	})
}
