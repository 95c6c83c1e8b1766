package realnode

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/fairlead/fairlead/test/e2e/readme"
)

// registry is what ./images has put in the place of REGISTRY.
const registry = "registry.test"

const installSection = "Install on a cluster"

// readmeCommands returns the README's commands about installing that start with a word, with REGISTRY filled in.
func (c *cluster) readmeCommands(word string) ([]string, error) {
	all, err := readme.Commands(filepath.Join(c.root, "README.md"), installSection)
	if err != nil {
		return nil, err
	}
	var found []string
	for _, command := range all {
		if strings.HasPrefix(command, word+" ") {
			found = append(found, strings.ReplaceAll(command, "REGISTRY", registry))
		}
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("README's section %q has no %s command", installSection, word)
	}
	return found, nil
}

// install runs the README's helm install, with more flags, and returns how long it took.
func (c *cluster) install(ctx context.Context, flags ...string) (time.Duration, error) {
	commands, err := c.readmeCommands("helm")
	if err != nil {
		return 0, err
	}
	started := time.Now()
	_, err = c.shell(ctx, commands[0]+" "+strings.Join(flags, " "))
	return time.Since(started), err
}

// replaceFlags are the flags by which the README says that Fairlead takes kube-proxy's place.
func (c *cluster) replaceFlags() ([]string, error) {
	text, err := readme.Section(filepath.Join(c.root, "README.md"), installSection)
	if err != nil {
		return nil, err
	}
	_, rest, found := strings.Cut(text, "`--set mode=replace")
	flags, _, closed := strings.Cut(rest, "`")
	if !found || !closed {
		return nil, fmt.Errorf("README's section %q does not say `--set mode=replace …`", installSection)
	}
	return strings.Fields("--set mode=replace" + strings.ReplaceAll(flags, "ADDRESS", c.kube.address())), nil
}

// shell runs a command as an administrator types it, at the top of the checkout.
func (c *cluster) shell(ctx context.Context, command string) (string, error) {
	return c.kube.command(ctx, "", "sh", "-c", command)
}
