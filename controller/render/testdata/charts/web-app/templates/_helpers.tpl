{{/* What only this chart needs; the rest is in the library chart. */}}
{{- define "web-app.image" -}}
{{- $registry := .Values.global.imageRegistry | default "docker.io" -}}
{{- printf "%s/%s:%s" $registry .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) -}}
{{- end -}}
{{- define "web-app.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "base.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}
