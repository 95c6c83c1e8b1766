package demo

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"

	discoveryv1 "k8s.io/api/discovery/v1"
	"sigs.k8s.io/yaml"
)

// webSlices are the manifests of the EndpointSlices of Service web, one for each family, each a single document.
var webSlices = []string{"web-ipv4.yaml", "web-ipv6.yaml"}

// editWeb changes the EndpointSlices of Service web, as the controllers of a cluster do when its pods change.
func (d *demo) editWeb(edit func(*discoveryv1.EndpointSlice)) error {
	for _, name := range webSlices {
		if err := editSlice(filepath.Join(d.manifests(), name), edit); err != nil {
			return err
		}
	}
	return nil
}

func editSlice(path string, edit func(*discoveryv1.EndpointSlice)) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var slice discoveryv1.EndpointSlice
	if err := yaml.UnmarshalStrict(text, &slice); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	edit(&slice)
	changed, err := yaml.Marshal(&slice)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if bytes.Equal(changed, text) {
		return nil
	}
	// Renamed into place, so that nobody reads half a file.
	if err := os.WriteFile(path+".new", changed, 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// podOf returns the endpoint of a pod in a slice, or nil.
func podOf(s *discoveryv1.EndpointSlice, pod string) *discoveryv1.Endpoint {
	for i := range s.Endpoints {
		if ref := s.Endpoints[i].TargetRef; ref != nil && ref.Name == pod {
			return &s.Endpoints[i]
		}
	}
	return nil
}
