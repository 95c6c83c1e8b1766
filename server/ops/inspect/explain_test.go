package inspect

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/fairlead/fairlead/server/ops/explain"
	"github.com/fairlead/fairlead/server/ops/offline"
)

// manifests describes two nodes in two zones and a Service with an endpoint for every reason there is.
const manifests = `
apiVersion: v1
kind: Node
metadata: {name: n1, labels: {topology.kubernetes.io/zone: a}}
---
apiVersion: v1
kind: Node
metadata: {name: n2, labels: {topology.kubernetes.io/zone: b}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec:
  type: NodePort
  clusterIP: 10.96.0.10
  clusterIPs: [10.96.0.10]
  externalTrafficPolicy: Local
  ports: [{name: http, port: 80, nodePort: 30080}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: default, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints:
- {addresses: [10.244.1.1], nodeName: n1, zone: a, hints: {forZones: [{name: a}]}, targetRef: {kind: Pod, namespace: default, name: web-a}}
- {addresses: [10.244.2.2], nodeName: n2, zone: b, hints: {forZones: [{name: b}]}}
- {addresses: [10.244.2.3], nodeName: n2, zone: b, conditions: {ready: false}}
- {addresses: [10.244.2.4], nodeName: n2, zone: b, conditions: {ready: false, serving: true, terminating: true}}
- {addresses: [127.0.0.1], nodeName: n2}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-2, namespace: default, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints:
- {addresses: [10.244.1.1], nodeName: n1, zone: a, hints: {forZones: [{name: a}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-3, namespace: default, labels: {kubernetes.io/service-name: web}}
addressType: IPv6
ports: [{name: http, port: 8080}]
endpoints:
- {addresses: ["fd00::5"], nodeName: n1, zone: a}
---
apiVersion: v1
kind: Service
metadata: {name: unhinted, namespace: default}
spec: {clusterIP: 10.96.0.11, clusterIPs: [10.96.0.11], ports: [{name: http, port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: unhinted-1, namespace: default, labels: {kubernetes.io/service-name: unhinted}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints:
- {addresses: [10.244.1.8], nodeName: n1, zone: a, hints: {forZones: [{name: a}]}}
- {addresses: [10.244.2.9], nodeName: n2, zone: b}
---
apiVersion: v1
kind: Service
metadata: {name: none, namespace: default}
spec: {clusterIP: 10.96.0.12, clusterIPs: [10.96.0.12], ports: [{name: http, port: 80}]}
`

func answerTo(t *testing.T, q Question) string {
	t.Helper()
	q.Manifests = offline.Config{Paths: []string{"-"}, Stdin: strings.NewReader(manifests)}
	var b bytes.Buffer
	if err := AnswerQuestion(t.Context(), q, &b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// Every endpoint that gets no traffic has its reason in the answer.
func TestReasons(t *testing.T) {
	tests := map[string]struct {
		question Question
		want     []string // Lines, spaces folded.
	}{
		"every reason": {
			Question{Service: "default/web", Nodes: []string{"n1"}, Format: "text"},
			[]string{
				"*:30080/TCP NodePort outside endpoint 10.244.1.1:8080 on this node; they see the client",
				"(endpoints hinted to this zone are used)",
				"10.244.1.1:8080 yes yes web-1 Pod default/web-a n1 a",
				"10.244.2.2:8080 no: hinted to another zone no: not on this node web-1 - n2 b",
				"10.244.2.3:8080 no: not ready no: not on this node web-1 - n2 b",
				"10.244.2.4:8080 no: terminating no: not on this node web-1 - n2 b",
				"10.244.1.1:8080 no: duplicate no: duplicate web-2 - n1 a",
				"[fd00::5]:8080 no: wrong family no: wrong family web-3 - n1 a",
			},
		},
		"hints switched off": {
			Question{Service: "unhinted", Format: "text"},
			[]string{
				"On n1, n2:",
				"(hints for zones are switched off by 10.244.2.9:8080, which is ready and has none)",
				"10.244.1.8:8080 yes unhinted-1 - n1 a",
			},
		},
		"no endpoints": {
			Question{Service: "none", From: "pod", Format: "text"},
			[]string{
				"10.96.0.12:80/TCP ClusterIP pod refused at once: no slice of the Service has an IPv4 endpoint",
				"Endpoints of default/none:http/TCP, IPv4: no slice has any",
			},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			answer := answerTo(t, test.question)
			lines := map[string]bool{}
			for line := range strings.Lines(answer) {
				lines[strings.Join(strings.Fields(line), " ")] = true
			}
			for _, want := range test.want {
				if !lines[want] {
					t.Errorf("no line %q in\n%s", want, answer)
				}
			}
		})
	}
	if answer := answerTo(t, Question{Service: "web", Format: "text"}); !strings.Contains(answer, "127.0.0.1") || !strings.Contains(answer, "InvalidAddress") {
		t.Errorf("the invalid endpoint is not named in\n%s", answer)
	}
}

func TestJSON(t *testing.T) {
	var r explain.Report
	if err := json.Unmarshal([]byte(answerTo(t, Question{Service: "web", Format: "json"})), &r); err != nil {
		t.Fatal(err)
	}
	if r.Service != "default/web" || len(r.Views) != 2 || len(r.Problems) == 0 {
		t.Errorf("report: %+v", r)
	}
}

// A question that cannot be answered says what could be asked instead.
func TestBadQuestions(t *testing.T) {
	for name, test := range map[string]struct {
		question Question
		want     string
	}{
		"unknown Service": {Question{Service: "default/nobody", Format: "text"}, "no Service default/nobody is forwarded"},
		"unknown node":    {Question{Service: "web", Nodes: []string{"n9"}, Format: "text"}, `no node "n9"; there are n1, n2`},
		"bad name":        {Question{Service: "a/b/c", Format: "text"}, "use namespace/name"},
		"bad origin":      {Question{Service: "web", From: "mars", Format: "text"}, `choose one of ["pod" "node" "outside"]`},
		"bad format":      {Question{Service: "web", Format: "xml"}, `choose one of ["text" "json" "yaml"]`},
	} {
		t.Run(name, func(t *testing.T) {
			test.question.Manifests = offline.Config{Paths: []string{"-"}, Stdin: strings.NewReader(manifests)}
			err := AnswerQuestion(t.Context(), test.question, &bytes.Buffer{})
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want one with %q", err, test.want)
			}
		})
	}
}

// Whatever keeps traffic from a Service is told, and told as what it is.
func TestWhyNothingIsForwarded(t *testing.T) {
	const (
		node    = "{apiVersion: v1, kind: Node, metadata: {name: n1}}\n---\n"
		service = "{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {clusterIP: 10.96.0.10, ports: [{name: sql, port: 3306}]}}\n---\n"
		slice   = "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}, addressType: IPv4, "
	)
	for name, test := range map[string]struct {
		manifests string
		node      string
		want      []string // In the answer, or in the error.
	}{
		"the slice's port has another name": {
			node + service + slice + "ports: [{name: mysql, port: 3306}], endpoints: [{addresses: [10.244.1.1]}]}", "",
			[]string{
				"refused at once: the Service has the port sql/TCP, but its slices have mysql/TCP; the names must be equal",
				"10.244.1.1 no: no port of the Service's, but mysql/TCP web-1",
			},
		},
		"the slice's port has another protocol, and none a name": {
			node + strings.Replace(service, "name: sql, ", "", 1) + slice + "ports: [{port: 3306, protocol: UDP}], endpoints: [{addresses: [10.244.1.1]}]}", "",
			[]string{"the Service has the port (unnamed)/TCP, but its slices have (unnamed)/UDP"},
		},
		"the slice has no port": {
			node + service + slice + "endpoints: [{addresses: [10.244.1.1]}]}", "",
			[]string{"the Service has the port sql/TCP, but its slices have none", "10.244.1.1 no: no port of the Service's web-1"},
		},
		"no endpoint is ready": {
			node + service + slice + "ports: [{name: sql, port: 3306}], endpoints: [{addresses: [10.244.1.1], conditions: {ready: false}}]}", "",
			[]string{"refused at once: no endpoint is ready, here or on another node"},
		},
		"there are Endpoints instead of slices": {
			node + service + "{apiVersion: v1, kind: Endpoints, metadata: {name: web}, subsets: []}", "",
			[]string{"refused at once: no slice of the Service has an IPv4 endpoint", "Endpoints default/web: UnsupportedObject: v1 Endpoints are not read"},
		},
		"no Node is known": {
			service, "",
			[]string{"On any node (no Node object is known, so neither are their zones):", "10.96.0.10:3306/TCP"},
		},
		"a node is asked for and none is known": {
			service, "n1",
			[]string{`no node "n1"; no Node object is known; add those of the cluster, or ask without a node`},
		},
		"the Service has a problem": {
			node + strings.Replace(service, "10.96.0.10", "localhost", 1), "",
			[]string{"the Service default/web is not forwarded: InvalidAddress: spec.clusterIP: "},
		},
		"the Service cannot be decoded": {
			node + strings.Replace(service, "3306", "many", 1), "",
			[]string{"the Service default/web is not forwarded: InvalidObject: spec.ports.port is text where a whole number"},
		},
		"another Service has its address": {
			node + service + strings.Replace(service, "name: web", "name: a", 1), "",
			[]string{"the Service default/web is not forwarded: DuplicateFrontend: "},
		},
		"part of the manifests cannot be read": {
			node + "kind: [", "",
			[]string{"no Service default/web is forwarded: it does not exist", "could not be read (1), the first: standard input, document 2: not YAML"},
		},
		"nothing can be read": {
			"kind: [", "",
			[]string{"no Service, EndpointSlice or Node could be read: standard input, document 1: not YAML"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			q := Question{Service: "web", Format: "text", Manifests: offline.Config{Paths: []string{"-"}, Stdin: strings.NewReader(test.manifests)}}
			if test.node != "" {
				q.Nodes = []string{test.node}
			}
			var b strings.Builder
			if err := AnswerQuestion(t.Context(), q, &b); err != nil {
				b.WriteString(err.Error())
			}
			answer := strings.Join(strings.Fields(b.String()), " ")
			for _, want := range test.want {
				if !strings.Contains(answer, want) {
					t.Errorf("no %q in\n%s", want, b.String())
				}
			}
		})
	}
}

// Nodes that see the same share a view, source ranges and all.
func TestViewsAreShared(t *testing.T) {
	const input = `{apiVersion: v1, kind: Node, metadata: {name: n1}}
---
{apiVersion: v1, kind: Node, metadata: {name: n2}}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: LoadBalancer, clusterIP: 10.96.0.10, ports: [{port: 80}], loadBalancerSourceRanges: [192.0.2.0/24]}
status: {loadBalancer: {ingress: [{ip: 203.0.113.1}]}}
`
	var b bytes.Buffer
	q := Question{Service: "web", Format: "text", Manifests: offline.Config{Paths: []string{"-"}, Stdin: strings.NewReader(input)}}
	if err := AnswerQuestion(t.Context(), q, &b); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(b.String(), "On n1, n2:") {
		t.Errorf("the nodes see different things in\n%s", &b)
	}
}
