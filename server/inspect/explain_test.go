package inspect

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/fairlead/fairlead/server/explain"
	"github.com/fairlead/fairlead/server/offline"
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
				"10.96.0.12:80/TCP ClusterIP pod refused at once: no endpoint is ready, here or on another node",
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
		"bad format":      {Question{Service: "web", Format: "xml"}, `choose one of ["text" "json"]`},
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
