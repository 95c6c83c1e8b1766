package main

import (
	"log/slog"
	"os"

	"github.com/spf13/pflag"
)

// logFlags set the form and the level of a long-running process's log.
type logFlags struct{ level, format string }

// add declares the flags.
func (l *logFlags) add(flags *pflag.FlagSet) {
	flags.StringVar(&l.format, "log-format", "text", "Form of the log on standard error: text or json.")
	flags.StringVar(&l.level, "log-level", "info", "Lowest level that is logged: debug, info, warn or error.")
}

// logger builds the logger that the flags describe, makes it slog's default and returns it.
func (l *logFlags) logger() (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(l.level)); err != nil {
		return nil, usagef("--log-level %q: use debug, info, warn or error", l.level)
	}
	options := &slog.HandlerOptions{Level: level}
	var handler slog.Handler
	switch l.format {
	case "text":
		handler = slog.NewTextHandler(os.Stderr, options)
	case "json":
		handler = slog.NewJSONHandler(os.Stderr, options)
	default:
		return nil, usagef("--log-format %q: use text or json", l.format)
	}
	logger := slog.New(handler)
	slog.SetDefault(logger)
	return logger, nil
}
