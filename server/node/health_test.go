package node

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

// The answers to load balancers and probes are those of kube-proxy 1.37.
func TestProxyHealth(t *testing.T) {
	ago := func(d time.Duration) time.Time { return time.Now().Add(-d) }
	for name, test := range map[string]struct {
		status         Status
		healthz, livez int
	}{
		"forwarding":                 {Status{LastUpdated: ago(time.Hour), eligible: true}, 200, 200},
		"a change on its way":        {Status{LastUpdated: ago(time.Hour), Pending: ago(time.Second), eligible: true}, 200, 200},
		"a change that hangs":        {Status{LastUpdated: ago(time.Hour), Pending: ago(2 * time.Minute), eligible: true}, 503, 503},
		"being deleted":              {Status{LastUpdated: ago(time.Hour)}, 503, 200},
		"starting, node not known":   {Status{Pending: ago(2 * time.Minute)}, 503, 200},
		"starting, with a long wait": {Status{Pending: ago(2 * time.Minute), eligible: true}, 200, 200},
	} {
		t.Run(name, func(t *testing.T) {
			test.status.families = []string{"IPv4", "IPv6"}
			handler := proxyHealthHandler(func() *Status { return &test.status })
			for path, want := range map[string]int{"/healthz": test.healthz, "/livez": test.livez} {
				w := httptest.NewRecorder()
				handler.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
				if w.Code != want {
					t.Errorf("%s answers %d, want %d: %s", path, w.Code, want, w.Body)
				}
				var body map[string]any
				if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil {
					t.Fatalf("%s: %v: %s", path, err, w.Body)
				}
				eligible, told := body["nodeEligible"]
				if told != (path == "/healthz") || told && eligible != test.status.eligible {
					t.Errorf("%s: nodeEligible is %v: %s", path, eligible, w.Body)
				}
			}
		})
	}
}

// kube-proxy's metrics port is asked for its mode, by Kubernetes' own tests among others, and scraped.
func TestProxyMetrics(t *testing.T) {
	metrics := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("fairlead_build_info 1")) })
	handler := proxyMetricsHandler(metrics)
	for path, want := range map[string]string{"/proxyMode": "fairlead", "/healthz": "ok", "/metrics": "fairlead_build_info 1"} {
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		if w.Code != http.StatusOK || w.Body.String() != want {
			t.Errorf("%s answers %d %q, want 200 %q", path, w.Code, w.Body, want)
		}
	}
}
