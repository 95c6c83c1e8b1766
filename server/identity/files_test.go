package identity

import (
	"crypto/tls"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// mount is a folder as the kubelet mounts a Secret: every file is a link through ..data, which is replaced at once.
type mount struct {
	dir     string
	version int
}

func (m *mount) put(t *testing.T, files map[string][]byte) {
	t.Helper()
	m.version++
	data := filepath.Join(m.dir, "..version-"+string(rune('0'+m.version)))
	if err := os.Mkdir(data, 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, data, files)
	next := filepath.Join(m.dir, "..data_tmp")
	if err := os.Symlink(filepath.Base(data), next); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(next, filepath.Join(m.dir, "..data")); err != nil {
		t.Fatal(err)
	}
	for name := range files {
		if err := os.Symlink(filepath.Join("..data", name), filepath.Join(m.dir, name)); err != nil && !os.IsExist(err) {
			t.Fatal(err)
		}
	}
}

// presented returns the serial number of the certificate that a server presents to a new connection.
func presented(t *testing.T, address string) string {
	t.Helper()
	conn, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	return conn.ConnectionState().PeerCertificates[0].SerialNumber.String()
}

// A certificate that is replaced is presented to the next connection, and those that exist go on. One that cannot be
// used changes nothing, and the log says why.
func TestFilesAreReadAgain(t *testing.T) {
	m := &mount{dir: t.TempDir()}
	m.put(t, newFiles(t, time.Now(), DefaultServerName))
	log := &logBuffer{}
	api := newAPIServer(t)
	c := serve(t, fromFiles(t, m.dir, log), api.authenticator(t, nil))
	stream := newAgent(t, dial(t, c.address, filepath.Join(m.dir, caFile), token(t, agentToken("n1"))), "n1")
	stream.take(t, 80)

	first := presented(t, c.address)
	m.put(t, newFiles(t, time.Now(), DefaultServerName))
	eventually(t, "the new certificate is presented", func() bool { return presented(t, c.address) != first })
	second := presented(t, c.address)
	newAgent(t, dial(t, c.address, filepath.Join(m.dir, caFile), token(t, agentToken("n2"))), "n2").take(t, 80)

	torn := newFiles(t, time.Now(), DefaultServerName)
	torn[certFile] = newFiles(t, time.Now(), DefaultServerName)[certFile]
	m.put(t, torn)
	eventually(t, "the log says why the new pair is not used", func() bool {
		return len(log.lines("level=ERROR", "private key does not match public key")) == 1
	})
	if got := presented(t, c.address); got != second {
		t.Error("a bad pair is presented, or none")
	}
	m.put(t, newFiles(t, time.Now(), DefaultServerName))
	eventually(t, "the pair after the bad one is presented", func() bool { return presented(t, c.address) != second })
	eventually(t, "the log says that it is over", func() bool { return len(log.lines("level=INFO", "over")) == 1 })

	c.publish(t, 81)
	stream.take(t, 81) // The stream has seen all that.
}

// The first certificate has to be good.
func TestBadFiles(t *testing.T) {
	good := newFiles(t, time.Now(), DefaultServerName)
	for _, test := range []struct {
		name  string
		files map[string][]byte
		want  string
	}{
		{"nothing", nil, "tls.crt: no such file"},
		{"no key", map[string][]byte{certFile: good[certFile]}, "tls.key: no such file"},
		{"no certificate", map[string][]byte{certFile: []byte("hello"), keyFile: good[keyFile]}, "tls.crt and tls.key: tls: failed to find any PEM data"},
		{"expired", newFiles(t, time.Now().Add(-2*servingLife), DefaultServerName), "tls.crt expired at"},
		{"another CA", map[string][]byte{certFile: good[certFile], keyFile: good[keyFile], caFile: newFiles(t, time.Now(), "x")[caFile]},
			"tls.crt is of no use to who trusts ca.crt"},
		{"a CA that is none", map[string][]byte{certFile: good[certFile], keyFile: good[keyFile], caFile: []byte("hello")}, "ca.crt holds no certificate"},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, test.files)
			if _, err := FromFiles(dir, nil); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want %q", err, test.want)
			}
		})
	}
	t.Run("a public issuer", func(t *testing.T) {
		dir := t.TempDir()
		write(t, dir, map[string][]byte{certFile: good[certFile], keyFile: good[keyFile], caFile: nil})
		if _, err := FromFiles(dir, nil); err != nil {
			t.Error(err)
		}
	})
}
