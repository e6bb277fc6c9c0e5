{{- define "argosy.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "argosy.fullname" -}}
{{- $name := include "argosy.name" . -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "argosy.selector" -}}
app.kubernetes.io/name: {{ include "argosy.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "argosy.labels" -}}
{{ include "argosy.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "argosy.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "argosy.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- /* Names of the Secrets: the caller's own, or those that the chart makes. */}}
{{- define "argosy.keysSecret" -}}
{{- default (printf "%s-keys" (include "argosy.fullname" .)) .Values.apiKeys.existingSecret }}
{{- end }}

{{- define "argosy.tlsSecret" -}}
{{- default (printf "%s-tls" (include "argosy.fullname" .)) .Values.tls.existingSecret }}
{{- end }}

{{- define "argosy.claim" -}}
{{- default (include "argosy.fullname" .) .Values.persistence.existingClaim }}
{{- end }}

{{- /* The image of a list of the root context and an override. */}}
{{- define "argosy.image" -}}
{{- $root := index . 0 }}
{{- $image := merge (deepCopy (index . 1)) (omit $root.Values.image "tag") }}
{{- /* A tag belongs to the repository and the variant that it was given with. */}}
{{- $own := or (ne $image.variant $root.Values.image.variant) (ne $image.repository $root.Values.image.repository) }}
{{- $tag := or $image.tag (ternary "" $root.Values.image.tag $own) (printf "%s-%s" $root.Chart.AppVersion $image.variant) }}
{{- printf "%s:%s" $image.repository $tag }}
{{- end }}
