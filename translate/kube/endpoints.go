package kube

import (
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fairlead/fairlead/translate/model"
)

// endpoints reads the metadata of v1 Endpoints, the predecessor of EndpointSlices. Nothing is forwarded by them, and that
// is a problem unless the Service has slices too, as in a cluster, where a controller mirrors Endpoints.
func endpoints(o *metav1.PartialObjectMetadata) model.Object {
	key := keyOf(model.KindEndpoints, o)
	rep := newReport(key)
	rep.add(model.UnsupportedObject, "v1 Endpoints are not read, and the Service has no EndpointSlice; get endpointslices from the cluster, where a controller makes them of Endpoints, or write one with the label %s: %s", discoveryv1.LabelServiceName, key.Name)
	return model.Object{Key: key, Problems: rep.list()}
}
