package source

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/fairlead/fairlead/translate/kube"
)

// BenchmarkReadAll reads 1,000 Services of 10 endpoints, each in a file of its own.
func BenchmarkReadAll(b *testing.B) {
	const services = 1000
	for _, form := range []string{"json", "yaml"} {
		b.Run(form, func(b *testing.B) {
			folder := b.TempDir()
			var paths []string
			var size int64
			for i := range services {
				content := manifestWithEndpoints(b, fmt.Sprint("web-", i), 10, form)
				size += int64(len(content))
				paths = append(paths, filepath.Join(folder, fmt.Sprint(i, ".", form)))
				if err := os.WriteFile(paths[i], content, 0o600); err != nil {
					b.Fatal(err)
				}
			}
			b.SetBytes(size)
			b.ReportAllocs()
			for b.Loop() {
				for _, f := range readAll(paths, kube.Reader{}, time.Now()) {
					if len(f.objects) != 2 || f.state != whole {
						b.Fatalf("%d objects, %v", len(f.objects), f.problems)
					}
				}
			}
		})
	}
}

// manifestWithEndpoints returns a Service and its slice, as JSON or as YAML documents.
func manifestWithEndpoints(b *testing.B, name string, endpoints int, form string) []byte {
	var list []string
	for i := range endpoints {
		list = append(list, fmt.Sprintf(`{"addresses": ["10.244.0.%d"], "conditions": {"ready": true, "serving": true, "terminating": false},
			"nodeName": "n%d", "zone": "zone-a", "targetRef": {"kind": "Pod", "namespace": "default", "name": "%s-%d"}}`, i+1, i, name, i))
	}
	slice := fmt.Sprintf(`{"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
		"metadata": {"name": "%s-1", "namespace": "default", "labels": {"kubernetes.io/service-name": "%s"}},
		"addressType": "IPv4", "ports": [{"name": "", "port": 8080, "protocol": "TCP"}], "endpoints": [%s]}`, name, name, strings.Join(list, ","))
	documents := []string{manifestOf(name, "80"), slice}
	for i := range documents {
		if form == "yaml" {
			converted, err := yaml.JSONToYAML([]byte(documents[i]))
			if err != nil {
				b.Fatal(err)
			}
			documents[i] = string(converted)
		}
	}
	return []byte(strings.Join(documents, "\n---\n"))
}
