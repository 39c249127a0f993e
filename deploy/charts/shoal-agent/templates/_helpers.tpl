{{- define "agent.selector" -}}
app.kubernetes.io/name: shoal-agent
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "agent.labels" -}}
{{ include "agent.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
# No bundle but the agent's own may touch what carries this.
shoal.dev/agent: "true"
{{- end }}
