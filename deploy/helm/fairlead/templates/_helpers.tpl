{{/* Names. One release is enough for a cluster; all names begin with the release's. */}}
{{- define "fairlead.selector" -}}
app.kubernetes.io/name: fairlead
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "fairlead.labels" -}}
{{ include "fairlead.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "fairlead.image" -}}
{{ .image.repository }}{{ if .image.digest }}@{{ .image.digest }}{{ else }}:{{ .image.tag | default .root.Chart.AppVersion }}{{ end }}
{{- end }}

{{- define "fairlead.hostNetwork" -}}
{{- if kindIs "bool" .Values.controlPlane.hostNetwork }}{{ .Values.controlPlane.hostNetwork }}{{ else }}{{ eq .Values.mode "replace" }}{{ end }}
{{- end }}

{{/* Replicas of the control plane. In the nodes' network each needs a node of its own. */}}
{{- define "fairlead.replicas" -}}
{{- if .Values.controlPlane.replicas }}{{ .Values.controlPlane.replicas }}{{ else }}
{{- $schedulable := 0 }}
{{- range (lookup "v1" "Node" "" "").items }}{{ if not (.spec).unschedulable }}{{ $schedulable = add $schedulable 1 }}{{ end }}{{ end }}
{{- if eq (int $schedulable) 1 }}1{{ else }}2{{ end }}
{{- end }}
{{- end }}

{{/* The environment of what talks to the API server. It is found by these two variables, which a kubelet sets to the address
     of the Service "kubernetes". */}}
{{- define "fairlead.env" -}}
- {name: NODE_NAME, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
- {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
- {name: POD_NAMESPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
{{- with .Values.apiServer.host }}
- {name: KUBERNETES_SERVICE_HOST, value: {{ . | quote }}}
- {name: KUBERNETES_SERVICE_PORT, value: {{ $.Values.apiServer.port | quote }}}
{{- end }}
{{- end }}

{{/* What a pod's spec has in common. */}}
{{- define "fairlead.podSpec" -}}
serviceAccountName: {{ .account }}
priorityClassName: {{ .of.priorityClassName }}
dnsPolicy: {{ .root.Values.dnsPolicy }}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .of.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .of.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .of.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* A pod template's metadata. */}}
{{- define "fairlead.podMetadata" -}}
labels:
  {{- include "fairlead.selector" . | nindent 2 }}
  {{- with merge (dict) .of.podLabels .root.Values.commonLabels }}{{ toYaml . | nindent 2 }}{{ end }}
{{- with .of.podAnnotations }}
annotations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* What no single value's schema can say. */}}
{{- define "fairlead.check" -}}
{{- if and (eq .Values.mode "replace") (not .Values.apiServer.host) }}
{{- fail "\n\nmode: replace needs apiServer.host: without kube-proxy the Service \"kubernetes\" works only once Fairlead does, so Fairlead must find the API server without it. Take the address from:\n  kubectl get endpointslices -n default -l kubernetes.io/service-name=kubernetes\n" }}
{{- end }}
{{- if and .Values.tls.secretName (not .Values.tls.caConfigMap) }}
{{- fail "\n\ntls.secretName needs tls.caConfigMap: agents have to know the CA that signed that certificate. Put its certificate into a ConfigMap, under the key ca.crt.\n" }}
{{- end }}
{{- if and (eq (include "fairlead.hostNetwork" .) "true") (eq (int .Values.controlPlane.adminPort) (int .Values.agent.adminPort)) }}
{{- fail "\n\ncontrolPlane.adminPort and agent.adminPort are the same, and in a node's network only one can have it.\n" }}
{{- end }}
{{- end }}
