package explain

import (
	"fmt"
	"slices"
	"strings"

	"github.com/fairlead/fairlead/translate"
	"github.com/fairlead/fairlead/translate/model"
)

// refusal says in words why connections to a frontend are refused.
func refusal(ports []translate.Explanation, f *model.Frontend) string {
	i := slices.IndexFunc(ports, func(x translate.Explanation) bool {
		return x.ServicePort == f.ServicePort && x.Family == f.Family
	})
	if i < 0 || len(ports[i].Endpoints) == 0 {
		return fmt.Sprintf("no slice of the Service has an %s endpoint", f.Family)
	}
	x := ports[i]
	var others []string
	for _, e := range x.Endpoints {
		if e.Cluster != translate.NoSuchPort {
			return "no endpoint is ready, here or on another node"
		}
		for _, p := range e.SlicePorts {
			if name := portName(p.Name, p.Protocol); !slices.Contains(others, name) {
				others = append(others, name)
			}
		}
	}
	wanted := portName(x.PortName, x.ServicePort.Protocol)
	if len(others) == 0 {
		return fmt.Sprintf("the Service has the port %s, but its slices have none", wanted)
	}
	return fmt.Sprintf("the Service has the port %s, but its slices have %s; the names must be equal", wanted, strings.Join(others, ", "))
}

// portName returns by what a Service's port and a slice's are matched.
func portName(name string, protocol model.Protocol) string {
	if name == "" {
		name = "(unnamed)"
	}
	return name + "/" + string(protocol)
}
