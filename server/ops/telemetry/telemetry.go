// Package telemetry makes the providers of traces and metrics that Fairlead's processes share.
//
// In go the standard OTEL_ environment variables, out come OpenTelemetry providers. Traces leave the process by OTLP, and
// only if the environment asks for them. Metrics leave it when a client reads the handler. Nothing here decides what is
// measured.
package telemetry

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"os"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
)

// Traces returns where a process of the given service.name sends its spans, and a function that sends the last of them
// and gives up when its context ends. OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES take precedence over the name.
//
// Spans are exported if OTEL_TRACES_EXPORTER is otlp, or if it is not set and OTEL_EXPORTER_OTLP_ENDPOINT or
// OTEL_EXPORTER_OTLP_TRACES_ENDPOINT is. Otherwise the provider does nothing and costs nothing. The exporter and the
// sampler read the other variables of the OpenTelemetry specification themselves.
func Traces(ctx context.Context, service string) (trace.TracerProvider, func(context.Context) error, error) {
	wanted, err := tracesWanted()
	if err != nil || !wanted {
		return noop.NewTracerProvider(), func(context.Context) error { return nil }, err
	}
	exporter, err := newExporter(ctx)
	if err != nil {
		return nil, nil, err
	}
	res, err := resource.New(ctx,
		resource.WithTelemetrySDK(),
		resource.WithHost(),
		resource.WithAttributes(attribute.String("service.name", service)),
		resource.WithFromEnv(),
	)
	if err != nil {
		return nil, nil, fmt.Errorf("describe this process for traces (OTEL_RESOURCE_ATTRIBUTES): %w", err)
	}
	// An exporter reports only to the global handler that a collector does not answer.
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { slog.Warn("telemetry was lost", "error", err) }))
	p := sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter), sdktrace.WithResource(res))
	return p, p.Shutdown, nil
}

func tracesWanted() (bool, error) {
	if os.Getenv("OTEL_SDK_DISABLED") == "true" {
		return false, nil
	}
	switch exporter := os.Getenv("OTEL_TRACES_EXPORTER"); exporter {
	case "otlp":
		return true, nil
	case "none":
		return false, nil
	case "":
		endpoint := cmp.Or(os.Getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"), os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT"))
		return endpoint != "", nil
	default:
		return false, fmt.Errorf("OTEL_TRACES_EXPORTER=%s is not supported: set otlp or none", exporter)
	}
}

func newExporter(ctx context.Context) (sdktrace.SpanExporter, error) {
	protocol := cmp.Or(os.Getenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"), os.Getenv("OTEL_EXPORTER_OTLP_PROTOCOL"), "http/protobuf")
	var (
		exporter sdktrace.SpanExporter
		err      error
	)
	switch protocol {
	case "http/protobuf":
		exporter, err = otlptracehttp.New(ctx)
	case "grpc":
		exporter, err = otlptracegrpc.New(ctx)
	default:
		return nil, fmt.Errorf("OTEL_EXPORTER_OTLP_PROTOCOL=%s is not supported: set http/protobuf or grpc", protocol)
	}
	if err != nil {
		return nil, fmt.Errorf("export traces by OTLP over %s: %w", protocol, err)
	}
	return exporter, nil
}
