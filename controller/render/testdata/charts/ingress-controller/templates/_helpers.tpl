{{- define "ic.fullname" -}}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 63 | trimSuffix "-" }}{{- end -}}
{{- define "ic.labels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: {{ default "controller" .component }}
{{- end -}}
{{- define "ic.image" -}}
{{ .registry }}/{{ .image }}{{ with .tag }}:{{ . }}{{ end }}{{ with .digest }}@{{ . }}{{ end }}
{{- end -}}
{{- define "ic.pod" -}}
metadata:
  labels: {{- include "ic.labels" . | nindent 4 }}
spec:
  dnsPolicy: {{ .Values.controller.hostNetwork | ternary "ClusterFirstWithHostNet" .Values.controller.dnsPolicy }}
  {{- if .Values.controller.hostNetwork }}
  hostNetwork: true
  {{- end }}
  serviceAccountName: {{ include "ic.fullname" . }}
  {{- with .Values.controller.topologySpreadConstraints }}
  topologySpreadConstraints:
    {{- range . }}
    - {{- mergeOverwrite (dict "labelSelector" (dict "matchLabels" (include "ic.labels" $ | fromYaml))) . | toYaml | nindent 6 }}
    {{- end }}
  {{- end }}
  containers:
    - name: {{ .Values.controller.name }}
      {{- with (merge (dict "arch" "amd64") .Values.controller.image) }}
      image: {{ include "ic.image" . | quote }}
      securityContext: {runAsUser: {{ .runAsUser }}, capabilities: {{ toJson $.Values.podSecurity.capabilities }}}
      {{- end }}
      args:
        - /controller
        - --election-id={{ include "ic.fullname" . }}-leader
        - --controller-class={{ .Values.controller.ingressClassResource.controllerValue }}
        - --configmap=$(POD_NAMESPACE)/{{ include "ic.fullname" . }}
        {{- if .Values.tcp }}
        - --tcp-services-configmap=$(POD_NAMESPACE)/{{ include "ic.fullname" . }}-tcp
        {{- end }}
        {{- if .Values.controller.admissionWebhooks.enabled }}
        - --validating-webhook=:{{ .Values.controller.admissionWebhooks.port }}
        {{- end }}
        {{- range $key, $value := .Values.controller.extraArgs }}
        {{- /* Accept keys without values or with false as value */}}
        {{- if eq ($value | quote | len) 2 }}
        - --{{ $key }}
        {{- else }}
        - --{{ $key }}={{ $value }}
        {{- end }}
        {{- end }}
      ports:
        {{- range $key, $value := .Values.controller.containerPort }}
        - {name: {{ $key }}, containerPort: {{ $value }}, protocol: TCP{{ if $.Values.controller.hostNetwork }}, hostPort: {{ $value }}{{ end }}}
        {{- end }}
        {{- range $key, $value := .Values.tcp }}
        - {name: {{ $key }}-tcp, containerPort: {{ $key }}, protocol: TCP}
        {{- end }}
{{- end -}}
