{{- define "db.name" }}{{ .Release.Name }}-db{{ end -}}
{{- define "db.secret" }}{{ .Values.auth.existingSecret | default (include "db.name" .) }}{{ end -}}
{{- define "db.conf" -}}
{{- range $k, $v := . }}
{{ $k }} = {{ if kindIs "string" $v }}'{{ $v }}'{{ else }}{{ $v }}{{ end }}
{{- end }}
{{- end -}}
{{- define "db.affinity" -}}
{{- $term := dict "topologyKey" "kubernetes.io/hostname" "labelSelector" (dict "matchLabels" (dict "app" (include "db.name" .))) -}}
{{- if eq .Values.affinity "hard" -}}
podAntiAffinity: {requiredDuringSchedulingIgnoredDuringExecution: [{{ $term | toJson }}]}
{{- else if eq .Values.affinity "soft" -}}
{{ dict "podAntiAffinity" (dict "preferredDuringSchedulingIgnoredDuringExecution" (list (dict "weight" 1 "podAffinityTerm" $term))) | toYaml }}
{{- else -}}
{}
{{- end -}}
{{- end -}}
