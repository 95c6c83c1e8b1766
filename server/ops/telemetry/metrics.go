package telemetry

import (
	"fmt"
	"net/http"
	"runtime"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	otelprom "go.opentelemetry.io/otel/exporters/prometheus"
	"go.opentelemetry.io/otel/metric"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
)

// Metrics returns a provider of meters, and the handler that serves their metrics in the Prometheus format, with those
// of the Go runtime and of the process, and fairlead_build_info, which is always 1 and has the version, the commit
// (revision) and the Go version of the program as labels. An instrument fairlead.publish.duration in s is shown as
// fairlead_publish_duration_seconds.
func Metrics(version, revision string) (metric.MeterProvider, http.Handler, error) {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), buildInfo(version, revision))
	exporter, err := otelprom.New(otelprom.WithRegisterer(registry), otelprom.WithoutScopeInfo(), otelprom.WithoutTargetInfo())
	if err != nil {
		return nil, nil, fmt.Errorf("export metrics: %w", err)
	}
	return sdkmetric.NewMeterProvider(sdkmetric.WithReader(exporter)), promhttp.HandlerFor(registry, promhttp.HandlerOpts{}), nil
}

// buildInfo names the program that is measured: joined with any other metric, it distinguishes a change of that metric from a
// change of version.
func buildInfo(version, revision string) prometheus.Collector {
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name:        "fairlead_build_info",
		Help:        "Always 1; the version, commit and Go version of the program are labels.",
		ConstLabels: prometheus.Labels{"version": version, "revision": revision, "goversion": runtime.Version()},
	})
	build.Set(1)
	return build
}

// LatencyBuckets are histogram bounds in s for what takes between 1 ms and a minute. kube-proxy's begin at 250 ms, where
// nothing of Fairlead would be seen.
var LatencyBuckets = []float64{.001, .002, .003, .005, .0075, .01, .015, .02, .03, .05, .075, .1, .15, .25, .5, 1, 2.5, 5, 10, 30, 60}
