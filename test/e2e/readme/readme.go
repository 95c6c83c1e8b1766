// Package readme reads the commands that a README tells people to type, so that tests can type them.
package readme

import (
	"fmt"
	"os"
	"strings"
)

// Commands returns the commands of a section of a Markdown file, in order: the lines of its indented blocks, those that
// end in a backslash joined with the next. The section is named by its heading, and ends at the next of any level.
func Commands(file, section string) ([]string, error) {
	text, err := Section(file, section)
	if err != nil {
		return nil, err
	}
	var commands []string
	unfinished := ""
	for line := range strings.Lines(text) {
		code, ok := strings.CutPrefix(strings.TrimRight(line, "\n"), "    ")
		if !ok {
			continue
		}
		part, more := strings.CutSuffix(unfinished+strings.TrimSpace(code), "\\")
		unfinished = ""
		if more {
			unfinished = part
			continue
		}
		commands = append(commands, part)
	}
	if len(commands) == 0 {
		return nil, fmt.Errorf("%s: section %q has no commands", file, section)
	}
	return commands, nil
}

// Section returns the text below a heading, up to the next.
func Section(file, section string) (string, error) {
	content, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	_, rest, found := strings.Cut(string(content), "\n## "+section+"\n")
	if !found {
		return "", fmt.Errorf("%s: no section %q", file, section)
	}
	text, _, _ := strings.Cut(rest, "\n#")
	return text, nil
}
