{{- define "shoal.selector" -}}
app.kubernetes.io/name: shoal
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "shoal.labels" -}}
{{ include "shoal.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "shoal.url" -}}
{{- $url := required "mqtt.url is not set: give the URL under which sites reach the broker, for example --set mqtt.url=mqtts://hub.example.org:8883" .Values.mqtt.url -}}
{{- if not (hasPrefix "mqtts://" $url) }}{{ fail (printf "mqtt.url is %q: it must begin with mqtts://" $url) }}{{ end -}}
{{- $url -}}
{{- end }}
