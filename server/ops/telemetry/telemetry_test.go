package telemetry

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/metric"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"
)

// clearEnv makes a test independent of the environment it runs in.
func clearEnv(t *testing.T) {
	for _, name := range []string{
		"OTEL_SDK_DISABLED", "OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
		"OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES",
	} {
		t.Setenv(name, "")
	}
}

// collector is an OTLP collector that remembers the encoded requests that it was sent.
type collector struct{ received chan string }

// ServeGRPC answers every method. What it reads has no fields that an Empty knows, so all of it is kept as unknown.
func (c *collector) ServeGRPC(_ any, stream grpc.ServerStream) error {
	request := &emptypb.Empty{}
	if err := stream.RecvMsg(request); err != nil {
		return err
	}
	method, _ := grpc.MethodFromServerStream(stream)
	c.received <- method + string(request.ProtoReflect().GetUnknown())
	return stream.SendMsg(&emptypb.Empty{})
}

func (c *collector) ServeHTTP(_ http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		body = []byte(err.Error())
	}
	c.received <- r.URL.Path + string(body)
}

func TestTracesReachTheCollectorThatTheEnvironmentNames(t *testing.T) {
	for _, test := range []struct{ protocol, path string }{
		{"grpc", "/opentelemetry.proto.collector.trace.v1.TraceService/Export"},
		{"http/protobuf", "/v1/traces"},
		{"", "/v1/traces"},
	} {
		t.Run("protocol "+test.protocol, func(t *testing.T) {
			clearEnv(t)
			c := &collector{received: make(chan string, 1)}
			t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://"+serve(t, c, test.protocol))
			t.Setenv("OTEL_EXPORTER_OTLP_PROTOCOL", test.protocol)

			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			provider, shutdown, err := Traces(ctx, "fairlead-test")
			if err != nil {
				t.Fatal(err)
			}
			_, span := provider.Tracer("test").Start(ctx, "a change")
			span.End()
			if err := shutdown(ctx); err != nil {
				t.Fatalf("shutdown: %v", err)
			}

			got := <-c.received
			for _, want := range []string{test.path, "a change", "fairlead-test"} {
				if !strings.Contains(got, want) {
					t.Errorf("the collector was sent %q, without %q", got, want)
				}
			}
		})
	}
}

// serve runs the collector on loopback until the test ends and returns its address.
func serve(t *testing.T, c *collector, protocol string) string {
	if protocol != "grpc" {
		s := httptest.NewServer(c)
		t.Cleanup(s.Close)
		return s.Listener.Addr().String()
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(grpc.UnknownServiceHandler(c.ServeGRPC))
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	t.Cleanup(func() { s.Stop(); <-done })
	return l.Addr().String()
}

func TestTracesOnlyIfAsked(t *testing.T) {
	for _, test := range []struct {
		name      string
		env       map[string]string
		recording bool
		err       string
	}{
		{name: "nothing set"},
		{name: "an endpoint", env: map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}, recording: true},
		{name: "an endpoint for traces", env: map[string]string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:9"}, recording: true},
		{name: "the exporter alone", env: map[string]string{"OTEL_TRACES_EXPORTER": "otlp"}, recording: true},
		{name: "an endpoint, but none", env: map[string]string{"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}},
		{name: "an endpoint, but disabled", env: map[string]string{"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}},
		{name: "an unknown exporter", env: map[string]string{"OTEL_TRACES_EXPORTER": "zipkin"}, err: "OTEL_TRACES_EXPORTER=zipkin is not supported: set otlp or none"},
		{
			name: "an unknown protocol",
			env:  map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"},
			err:  "OTEL_EXPORTER_OTLP_PROTOCOL=http/json is not supported: set http/protobuf or grpc",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			clearEnv(t)
			for k, v := range test.env {
				t.Setenv(k, v)
			}
			provider, shutdown, err := Traces(t.Context(), "fairlead-test")
			if test.err != "" {
				if err == nil || err.Error() != test.err {
					t.Fatalf("error %v, want %s", err, test.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			_, span := provider.Tracer("test").Start(t.Context(), "a change")
			if got := span.IsRecording(); got != test.recording {
				t.Errorf("recording: %v, want %v", got, test.recording)
			}
			if err := shutdown(t.Context()); err != nil {
				t.Errorf("shutdown: %v", err)
			}
		})
	}
}

func TestMetricsAreShownUnderPrometheusNames(t *testing.T) {
	provider, handler, err := Metrics("v1.2.3", "abc")
	if err != nil {
		t.Fatal(err)
	}
	meter := provider.Meter("test")
	h, err := meter.Float64Histogram("fairlead.test.duration", metric.WithUnit("s"), metric.WithExplicitBucketBoundaries(LatencyBuckets...))
	if err != nil {
		t.Fatal(err)
	}
	h.Record(t.Context(), 0.004)

	w := httptest.NewRecorder()
	handler.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	for _, want := range []string{
		`fairlead_test_duration_seconds_bucket{le="0.005"} 1`, `fairlead_test_duration_seconds_bucket{le="0.003"} 0`, "process_resident_memory_bytes", "go_goroutines",
		`fairlead_build_info{goversion="` + runtime.Version() + `",revision="abc",version="v1.2.3"} 1`,
	} {
		if !strings.Contains(w.Body.String(), want) {
			t.Errorf("no %s in:\n%s", want, w.Body)
		}
	}
}
