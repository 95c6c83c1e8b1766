package source

import (
	"strings"
	"testing"
	"unicode/utf16"

	"github.com/google/go-cmp/cmp"
)

// inUTF16 returns text in UTF-16, big-endian, with a byte order mark.
func inUTF16(text string) string {
	b := []byte{0xfe, 0xff}
	for _, unit := range utf16.Encode([]rune(text)) {
		b = append(b, byte(unit>>8), byte(unit))
	}
	return string(b)
}

// littleEndian swaps the bytes of UTF-16.
func littleEndian(text string) string {
	b := []byte(text)
	for i := 0; i+1 < len(b); i += 2 {
		b[i], b[i+1] = b[i+1], b[i]
	}
	return string(b)
}

// However objects stand one after another in a file, each is found.
func TestEveryObjectIsFound(t *testing.T) {
	const (
		mark  = "\xef\xbb\xbf"
		jsonA = `{"apiVersion":"v1","kind":"Service","metadata":{"name":"a"}}`
		jsonB = "{\n  \"apiVersion\": \"v1\",\n  \"kind\": \"Service\",\n  \"metadata\": {\n    \"name\": \"b\"\n  }\n}"
		yamlA = "apiVersion: v1\nkind: Service\nmetadata:\n  name: a\n"
		yamlB = "apiVersion: v1\nkind: Service\nmetadata:\n  name: b\n"
	)
	for name, input := range map[string]string{
		"JSON values on lines":                    jsonA + "\n" + jsonB + "\n",
		"JSON values without anything between":    jsonA + jsonB,
		"comments between JSON values":            "# all\n" + jsonA + " # the first\n# and\n" + jsonB + "\n# end",
		"JSON values, then YAML documents":        jsonA + "\n---\n" + yamlB,
		"YAML after JSON without a separator":     jsonA + "\n" + yamlB,
		"several JSON values in one of documents": "---\n" + jsonA + "\n" + jsonB + "\n---\n# nothing\n",
		"a comment behind the separator":          yamlA + "--- # b\n" + yamlB,
		"an object behind the separator":          "--- " + jsonA + "\n---\t" + strings.ReplaceAll(jsonB, "\n", " "),
		"the end of a document":                   yamlA + "...\n" + yamlB,
		"the end of a document, then a separator": yamlA + "...\n---\n" + yamlB + "...\n",
		"directives":                                "%YAML 1.2\n---\n" + yamlA + "...\n# more\n%YAML 1.2\n--- \n" + yamlB,
		"documents that are empty":                  "---\n---\n" + yamlA + "---\n\n--- # none\n---\n" + yamlB + "---\n",
		"documents that are null":                   "null\n---\n" + yamlA + "---\n~\n---\n" + yamlB,
		"a separator with spaces":                   yamlA + "---   \n" + yamlB,
		"lines that end as on Windows":              strings.ReplaceAll(yamlA+"---\n"+yamlB, "\n", "\r\n"),
		"lines that end in a carriage return":       strings.ReplaceAll(yamlA+"---\n"+yamlB, "\n", "\r"),
		"a byte order mark":                         mark + yamlA + "---\n" + yamlB,
		"a byte order mark before each of them":     mark + yamlA + "---\n" + mark + yamlB,
		"a byte order mark before JSON":             mark + jsonA + "\n" + mark + jsonB,
		"UTF-16":                                    inUTF16(yamlA + "---\n" + yamlB),
		"UTF-16, little-endian":                     littleEndian(inUTF16(yamlA + "---\n" + yamlB)),
		"UTF-16 without a mark":                     inUTF16(yamlA + "---\n" + yamlB)[2:],
		"UTF-16, little-endian, without a mark":     littleEndian(inUTF16(jsonA + jsonB)[2:]),
		"documents that are indented":               "  " + strings.ReplaceAll(yamlA, "\n", "\n  ") + "\n---\n" + yamlB,
		"merge keys, which others override":         "apiVersion: v1\nkind: Service\nmetadata: &m {name: a}\n---\napiVersion: v1\nkind: Service\nmetadata: {<<: {name: x}, name: b}\n",
		"anchors":                                   "apiVersion: &v v1\nkind: Service\nmetadata: {name: a}\n---\napiVersion: &v v1\nkind: Service\nmetadata: {name: b, labels: {x: *v}}\n",
		"quoted keys":                               "\"apiVersion\": v1\n'kind': Service\nmetadata: {name: a}\n---\n" + yamlB,
		"a List":                                    "apiVersion: v1\nkind: List\nitems: [" + jsonA + ", " + jsonB + "]",
		"a List in a List":                          `{"apiVersion":"v1","kind":"List","items":[` + jsonA + `,{"apiVersion":"v1","kind":"List","items":[` + jsonB + `]}]}`,
		"a List of one kind that stands in no item": "{apiVersion: v1, kind: ServiceList, metadata: {}, items: [{metadata: {name: a}}, {metadata: {name: b}}]}",
	} {
		t.Run(name, func(t *testing.T) {
			got, err := ReadManifests([]string{Stdin}, strings.NewReader(input))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff([]string{"*v1.Service default/a", "*v1.Service default/b"}, names(t, got.Objects)); diff != "" {
				t.Errorf("objects (-want +got):\n%s", diff)
			}
			for _, p := range got.Problems {
				t.Errorf("problem %+v", p)
			}
		})
	}
}

// What cannot be used is told of in the words of manifests, with what to do.
func TestWordsOfProblems(t *testing.T) {
	for name, tc := range map[string]struct {
		input      string
		want       []string // Object, reason and a part of the message, in order.
		passedOver string
	}{
		"an answer of the API server": {
			`{"kind":"Status","apiVersion":"v1","status":"Failure","message":"services is forbidden","code":403}`,
			[]string{`document 1 InvalidObject an answer of the API server, not an object: "services is forbidden"`}, "",
		},
		"a table of kubectl get":   {"NAME   TYPE\nweb    ClusterIP\n", []string{`document 1 InvalidObject text, not a Kubernetes object: it begins "NAME   TYPE web    ClusterIP"`}, ""},
		"an error of kubectl":      {"Error from server: x is forbidden: no\n", []string{`document 1 Unreadable not YAML: mapping values are not allowed in this context (it begins "Error from server: `}, ""},
		"a page of a web server":   {"<html>\n<body>404</body></html>", []string{`document 1 InvalidObject text, not a Kubernetes object: it begins "<html>`}, ""},
		"a list of JSON":           {`[{"apiVersion":"v1","kind":"Service","metadata":{"name":"a"}}]`, []string{"document 1 InvalidObject a list, not a Kubernetes object; write each object as a document of its own"}, ""},
		"a number":                 {"7", []string{"document 1 InvalidObject the value 7, not a Kubernetes object"}, ""},
		"something compressed":     {"\x1f\x8b\x08\x00\x01", []string{"standard input Unreadable not text in UTF-8 or UTF-16, but perhaps something compressed"}, ""},
		"a configuration file":     {"server: {port: 80}\n", []string{`document 1 InvalidObject apiVersion and kind are missing, there is "server"`}, ""},
		"no apiVersion":            {"{kind: Pod, metadata: {name: a}}", []string{"document 1 UnsupportedObject apiVersion is missing beside kind: Pod"}, ""},
		"a kind in the plural":     {"{apiVersion: v1, kind: services, metadata: {name: a}}", []string{`document 1 UnsupportedObject apiVersion "v1" with kind "services" is nothing that Kubernetes knows; write apiVersion: v1 and kind: Service`}, ""},
		"a kind in wrong letters":  {"{apiVersion: v1, kind: service, metadata: {name: a}}", []string{`document 1 UnsupportedObject apiVersion "v1" with kind "service" is nothing that Kubernetes knows; write apiVersion: v1 and kind: Service`}, ""},
		"an old slice":             {"{apiVersion: discovery.k8s.io/v1beta1, kind: EndpointSlice, metadata: {name: a}}", []string{"document 1 UnsupportedObject discovery.k8s.io/v1beta1 EndpointSlice is not read"}, ""},
		"a list that is none":      {"{apiVersion: v1, kind: List, items: {}}", []string{"document 1 InvalidObject not a Kubernetes object: items is a mapping where a list is expected"}, ""},
		"a misspelled field":       {"{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIp: 10.0.0.1}}", []string{"Service default/a InvalidField spec.clusterIp is no field of this object, and is passed over; write clusterIP"}, ""},
		"a field of another place": {"{apiVersion: v1, kind: Service, metadata: {name: a}, port: 80}", []string{"Service default/a InvalidField port is no field of this object, and is passed over; correct or remove it"}, ""},
		"a key twice in YAML":      {"\napiVersion: v1\nkind: Service\nmetadata: {name: a}\nkind: Service\n", []string{`document 1 InvalidField line 5: the key "kind" stands there twice`}, ""},
		"a key twice in JSON":      {`{"apiVersion":"v1","kind":"Service","metadata":{"name":"b","name":"a"}}`, []string{"Service default/a InvalidField metadata.name stands there twice, and the last one counts"}, ""},
		"text for a number":        {"{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {ports: [{port: '80'}]}}", []string{"Service default/a InvalidObject spec.ports.port is text where a whole number"}, ""},
		"a number for text":        {"{apiVersion: v1, kind: Service, metadata: {name: a, labels: {x: 1}}}", []string{"Service default/a InvalidObject metadata.labels is a number where text is expected (put it in quotes)"}, ""},
		"a tab":                    {"apiVersion: v1\nkind: Service\nmetadata:\n\tname: a\n", []string{"document 1 Unreadable not YAML: line 4: found character that cannot start any token (YAML is indented by spaces, not by tabs)"}, ""},
		"a line of a later document": {
			"{apiVersion: v1, kind: Pod}\n---\napiVersion: v1\nkind: Service\nmetadata:\n\tname: a\n",
			[]string{"document 2 Unreadable not YAML: line 6: "}, "1 Pod",
		},
		"a template":                 {"kind: Service\nmetadata: {name: {{ .name }}}\n", []string{"document 1 Unreadable not YAML: a key is not a text (is it a template"}, ""},
		"a comma after a JSON value": {`{"apiVersion":"v1","kind":"Pod"},` + "\n" + `{"apiVersion":"v1","kind":"Pod"}`, []string{"document 1, value 2 Unreadable not YAML"}, "1 Pod"},
		"JSON that is cut off":       {`{"apiVersion":"v1","kind":"Pod"}` + "\n" + `{"apiVersion":"v1",`, []string{"document 1, value 2 Unreadable not YAML"}, "1 Pod"},
		"more behind a mapping":      {"{kind: Pod, apiVersion: v1}\n{kind: Pod, apiVersion: v1}\n", []string{"document 1 Unreadable not YAML"}, ""},
		"references that explode":    {"a: &a [x,x,x,x,x,x,x,x,x]\n" + "b: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\n" + "c: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: [*e,*e,*e,*e,*e,*e,*e,*e,*e]\ng: [*e,*e,*e,*e,*e,*e,*e,*e,*e]\n", []string{"document 1 Unreadable not YAML: document contains excessive aliasing"}, ""},
		"other kinds": {
			"{apiVersion: apps/v1, kind: DeploymentList, items: [{}, {}, {}]}\n---\n{apiVersion: v1, kind: ConfigMap}\n---\n{apiVersion: serving.knative.dev/v1, kind: Service}\n---\n{apiVersion: networking.k8s.io/v1, kind: NetworkPolicyList, items: [{}, {}]}",
			nil, "1 ConfigMap, 3 Deployments, 2 NetworkPolicies, 1 Service of serving.knative.dev/v1",
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := ReadManifests([]string{Stdin}, strings.NewReader(tc.input))
			if err != nil {
				t.Fatal(err)
			}
			var all []string
			for _, p := range got.Problems {
				all = append(all, p.Object+" "+string(p.Reason)+" "+p.Message)
			}
			if len(all) != len(tc.want) {
				t.Errorf("got %q, want %q", all, tc.want)
			}
			for i := range min(len(all), len(tc.want)) {
				if !strings.Contains(all[i], tc.want[i]) {
					t.Errorf("got %q, want %q", all[i], tc.want[i])
				}
			}
			if passed := got.PassedOver.String(); passed != tc.passedOver {
				t.Errorf("passed over %q, want %q", passed, tc.passedOver)
			}
		})
	}
}
