package grpc

import (
	"strings"

	"github.com/fairlead/fairlead/translate/model"
)

// Domain is the DNS domain of the cluster, such as cluster.local.
type Domain string

// DefaultDomain is the domain of a cluster that configures no other one.
const DefaultDomain Domain = "cluster.local"

// target is what a client dials: one port of a Service, by its number or its name.
type target struct {
	service model.ServiceKey
	port    string
}

// parse reads what a client dials after xds:///. Services have the same names here as in DNS, but for the forms that
// only a pod's search path makes whole: the client's namespace is not known.
//
//	web.default:80   web.default.svc:80   web.default.svc.cluster.local:80   and the same with the port's name
func (d Domain) parse(name string) (target, bool) {
	host, port, found := strings.Cut(name, ":")
	if !found || port == "" {
		return target{}, false
	}
	host = strings.TrimSuffix(host, "."+string(d))
	labels := strings.Split(host, ".")
	if len(labels) == 3 && labels[2] == "svc" {
		labels = labels[:2]
	} else if host+":"+port != name {
		return target{}, false // The domain without svc before it.
	}
	if len(labels) != 2 || labels[0] == "" || labels[1] == "" {
		return target{}, false
	}
	return target{model.ServiceKey{Namespace: labels[1], Name: labels[0]}, port}, true
}

// format returns the longest of the names that parse reads, which names the target's RouteConfiguration.
func (d Domain) format(t target) string {
	return t.service.Name + "." + t.service.Namespace + ".svc." + string(d) + ":" + t.port
}
