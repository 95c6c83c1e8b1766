package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"github.com/fairlead/fairlead/server/node/dataplane"
	"github.com/fairlead/fairlead/server/node/envoyns"
	"github.com/fairlead/fairlead/server/node/splice"
	"github.com/fairlead/fairlead/server/node/upstream"
)

// ProxySocket returns the path of the socket at which an agent accepts proxies.
func ProxySocket(runDir string) string { return filepath.Join(runDir, "proxy.sock") }

// XDSSocket returns the path of the socket at which an agent serves its Envoys.
func XDSSocket(runDir string) string { return filepath.Join(runDir, "xds.sock") }

// AdminSocket returns the path of the socket at which an Envoy instance serves its admin interface.
func AdminSocket(runDir string, id envoyns.ID) string {
	return filepath.Join(envoyDir(runDir), fmt.Sprintf("admin-%d.sock", id))
}

// statePath is the file with the last good state, and instancePath the one with the number of the current Envoy.
func statePath(stateDir string) string    { return filepath.Join(stateDir, "last-good") }
func instancePath(stateDir string) string { return filepath.Join(stateDir, "generation") }

// replicasPath is the file with the last known addresses of the control plane's replicas.
func replicasPath(stateDir string) string { return filepath.Join(stateDir, "replicas") }

// envoyDir is the folder that Envoy may write to: it holds its admin sockets.
func envoyDir(runDir string) string { return filepath.Join(runDir, "envoy") }

// makeFolders makes the folders of an agent: for root, and one in which Envoy's user writes.
func makeFolders(config Config) error {
	for _, dir := range []struct {
		path string
		mode os.FileMode
	}{{config.StateDir, 0o700}, {config.RunDir, 0o711}, {envoyDir(config.RunDir), 0o700}} {
		if err := os.MkdirAll(dir.path, dir.mode); err != nil {
			return fmt.Errorf("make folder: %w", err)
		}
	}
	if err := os.Chown(envoyDir(config.RunDir), config.User, config.User); err != nil {
		return fmt.Errorf("give a folder to Envoy's user: %w", err)
	}
	return nil
}

// listen listens on a unix socket to which only one user, and root, can connect. It replaces one that an earlier agent left. The
// socket is made in a folder that only root can enter, since its mode cannot be set before it listens.
func listen(path string, user int) (*net.UnixListener, error) {
	private, err := os.MkdirTemp(filepath.Dir(path), ".")
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	defer os.RemoveAll(private)
	made := filepath.Join(private, "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: made, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	// The next agent's socket may be at the path by the time this one closes.
	l.SetUnlinkOnClose(false)
	if err := errors.Join(os.Chmod(made, 0o600), os.Chown(made, user, user), os.Rename(made, path)); err != nil {
		return nil, errors.Join(fmt.Errorf("socket: %w", err), l.Close())
	}
	return l, nil
}

// Cleanup removes everything that agents made on this node: tables, links, routes, rules, sockets and the last good state.
// It ends established connections through Fairlead. It waits until no agent runs any more, or ctx ends.
func Cleanup(ctx context.Context, config Config) error {
	if _, err := os.Stat(config.RunDir); errors.Is(err, os.ErrNotExist) {
		return cleanup(ctx, config) // Without the folder no agent can hold the lock.
	}
	locked, err := lock(ctx, config.RunDir)
	if err != nil {
		return err
	}
	return errors.Join(cleanup(ctx, config), locked.Close())
}

// cleanup is Cleanup for a caller that holds the lock.
func cleanup(ctx context.Context, config Config) error {
	errs := []error{splice.Remove(), dataplane.Cleanup(ctx, config.EnvoyNS), envoyns.RemoveAll(config.EnvoyNS)}
	for _, path := range []string{
		ProxySocket(config.RunDir), XDSSocket(config.RunDir), envoyDir(config.RunDir), lockPath(config.RunDir),
		statePath(config.StateDir), upstream.PreviousState(statePath(config.StateDir)), instancePath(config.StateDir), replicasPath(config.StateDir),
	} {
		errs = append(errs, os.RemoveAll(path))
	}
	// The folders stay if they are mount points, or hold files that are not the agent's.
	_, _ = os.Remove(config.RunDir), os.Remove(config.StateDir)
	return errors.Join(errs...)
}
