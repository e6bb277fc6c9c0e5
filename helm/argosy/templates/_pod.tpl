{{- /* Parts of every pod. */}}
{{- define "argosy.podSecurity" -}}
runAsNonRoot: true
{{- with .Values.podSecurity.runAsUser }}
runAsUser: {{ int . }}
{{- end }}
{{- with .Values.podSecurity.runAsGroup }}
runAsGroup: {{ int . }}
{{- end }}
{{- with .Values.podSecurity.fsGroup }}
fsGroup: {{ int . }}
{{- end }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "argosy.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities:
  drop: [ALL]
{{- end }}

{{- /* Changes of these must replace pods, which read them once. */}}
{{- define "argosy.podAnnotations" -}}
{{- if not (or .Values.insecure .Values.apiKeys.existingSecret) }}
checksum/keys: {{ join "," (concat .Values.apiKeys.keys (list "") .Values.apiKeys.priorityKeys) | sha256sum }}
{{- end }}
{{- if and .Values.tls.enabled (not .Values.tls.existingSecret) }}
checksum/tls: {{ print .Values.tls.certificate .Values.tls.key | sha256sum }}
{{- end }}
{{- with .Values.podAnnotations }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- /* Everything that is written lies in one of these: the root file system is read only. */}}
{{- define "argosy.volumes" -}}
- name: data
  {{- if .Values.persistence.enabled }}
  persistentVolumeClaim:
    claimName: {{ include "argosy.claim" . }}
  {{- else }}
  emptyDir:
    sizeLimit: {{ .Values.persistence.size }}
  {{- end }}
- name: tmp
  emptyDir:
    sizeLimit: {{ .Values.scratch.tmpSize }}
- name: cache
  emptyDir:
    sizeLimit: {{ .Values.scratch.cacheSize }}
- name: config
  configMap:
    name: {{ include "argosy.fullname" . }}
{{- if .Values.tls.enabled }}
- name: tls
  secret:
    secretName: {{ include "argosy.tlsSecret" . }}
    defaultMode: 0440
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "argosy.volumeMounts" -}}
- {name: data, mountPath: /var/lib/argosy}
- {name: tmp, mountPath: /tmp}
- {name: cache, mountPath: /var/cache/argosy}
- {name: config, mountPath: /etc/argosy/config, readOnly: true}
{{- end }}

{{- /* Where libraries may write. */}}
{{- define "argosy.homeEnv" -}}
- name: HOME
  value: /var/cache/argosy
- name: XDG_CACHE_HOME
  value: /var/cache/argosy
{{- end }}

{{- /* Secrets, as servers read them. */}}
{{- define "argosy.secretEnv" -}}
{{- if not .Values.insecure }}
- name: ARGOSY_API_KEYS
  valueFrom:
    secretKeyRef:
      name: {{ include "argosy.keysSecret" . }}
      key: api-keys
- name: ARGOSY_PRIORITY_KEYS
  valueFrom:
    secretKeyRef:
      name: {{ include "argosy.keysSecret" . }}
      key: priority-keys
      optional: true
{{- end }}
{{- if .Values.database.existingSecret }}
- name: ARGOSY_DATABASE__DSN
  valueFrom:
    secretKeyRef:
      name: {{ .Values.database.existingSecret }}
      key: {{ .Values.database.key }}
{{- end }}
{{- end }}

{{- /* Seconds from a pod's being told to stop until it is killed: longer than any call may take to finish. */}}
{{- define "argosy.graceSeconds" -}}
{{- add .Values.preStopSeconds .Values.drainSeconds 30 }}
{{- end }}

{{- /* Containers that run before servers: of a list of root context, image and, where it compiles, resources. */}}
{{- define "argosy.initContainers" -}}
{{- $root := index . 0 }}
{{- with $root }}
{{- if .Values.models.pull }}
- name: pull-models
  image: {{ include "argosy.image" (list . .Values.models.image) }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  command: [argosy, models, pull, {{ join ", " (include "argosy.models" . | fromJsonArray) }}]
  env:
    - name: ARGOSY_DATA_DIR
      value: /var/lib/argosy
    {{- include "argosy.homeEnv" . | nindent 4 }}
    {{- if .Values.models.hubTokenSecret }}
    - name: HF_TOKEN
      valueFrom:
        secretKeyRef:
          name: {{ .Values.models.hubTokenSecret }}
          key: {{ .Values.models.hubTokenKey }}
    {{- end }}
  resources:
    {{- toYaml .Values.models.resources | nindent 4 }}
  securityContext:
    {{- include "argosy.containerSecurity" . | nindent 4 }}
  volumeMounts:
    {{- include "argosy.volumeMounts" . | nindent 4 }}
    {{- with .Values.extraVolumeMounts }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end }}
{{- if and .Values.compile.enabled (gt (len $) 2) }}
{{- $generation := (include "argosy.allSettings" . | fromJson).generation }}
- name: compile-engine
  image: {{ index $ 1 }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  command:
    - argosy
    - compile
    - {{ $generation.model | quote }}
    - --gpu={{ .Values.compile.gpu }}
    - --max-batch-size={{ int $generation.max_batch }}
    - --max-input-len={{ int .Values.compile.maxInputTokens }}
    - --max-seq-len={{ int .Values.compile.maxSequenceTokens }}
    - --max-num-tokens={{ int $generation.tensorrt_llm.max_batch_tokens }}
    - --quantization={{ $generation.tensorrt_llm.quantization }}
    - --tensor-parallel-size={{ int $generation.tensorrt_llm.tensor_parallel_size }}
    - --lora-max-rank={{ ternary (int $generation.max_adapter_rank) 0 (gt (int $generation.max_adapters) 0) }}
    {{- if .Values.compile.logprobs }}
    - --logprobs
    {{- end }}
  env:
    - name: ARGOSY_DATA_DIR
      value: /var/lib/argosy
    {{- include "argosy.homeEnv" . | nindent 4 }}
  resources:
    {{- toYaml (index $ 2) | nindent 4 }}
  securityContext:
    {{- include "argosy.containerSecurity" . | nindent 4 }}
  volumeMounts:
    {{- include "argosy.volumeMounts" . | nindent 4 }}
{{- end }}
{{- end }}
{{- end }}

{{- /* Spread over zones and nodes, of a list of root context and the labels that are meant. */}}
{{- define "argosy.topologySpread" -}}
{{- $labels := index . 1 }}
{{- range (index . 0).Values.topologySpread }}
- {{ toYaml . | nindent 2 | trim }}
  labelSelector:
    matchLabels:
      {{- $labels | nindent 6 }}
{{- end }}
{{- end }}

{{- /* Whether there may be several pods of servers: not empty if so. */}}
{{- define "argosy.several" -}}
{{- if or (eq .Values.mode "ray") (gt (int .Values.replicas) 1) .Values.autoscaling.enabled .Values.keda.enabled }}yes{{ end }}
{{- end }}

{{- /* What schemas cannot say. */}}
{{- define "argosy.check" -}}
{{- if not (or .Values.insecure .Values.apiKeys.existingSecret .Values.apiKeys.keys) }}
{{- fail "apiKeys: there are none, and pods can be reached from other machines: set apiKeys.existingSecret or apiKeys.keys, or insecure=true where the network itself is trusted" }}
{{- end }}
{{- range .Values.apiKeys.priorityKeys }}
{{- if not (has . $.Values.apiKeys.keys) }}
{{- fail "apiKeys.priorityKeys: one of them is not among apiKeys.keys: add it there or remove it here" }}
{{- end }}
{{- end }}
{{- if and .Values.tls.enabled (not .Values.tls.existingSecret) (not (and .Values.tls.certificate .Values.tls.key)) }}
{{- fail "tls: it is enabled without a certificate: set tls.existingSecret, or tls.certificate and tls.key" }}
{{- end }}
{{- range $name, $limits := dict "autoscaling" .Values.autoscaling "keda" .Values.keda "ray.groups.gateway" .Values.ray.groups.gateway "ray.groups.cpu" .Values.ray.groups.cpu "ray.groups.gpu" .Values.ray.groups.gpu }}
{{- if gt (int $limits.minReplicas) (int $limits.maxReplicas) }}
{{- fail (printf "%s: minReplicas %v is above maxReplicas %v" $name $limits.minReplicas $limits.maxReplicas) }}
{{- end }}
{{- end }}
{{- range $name, $server := dig "agents" "mcp" dict .Values.settings }}
{{- range pick $server "headers" "env" | keys | sortAlpha }}
{{- fail (printf "settings.agents.mcp.%s.%s: settings are no place for secrets, whoever reads the pods' configuration reads them: put JSON such as {\"%s\": {\"%s\": {\"NAME\": \"SECRET\"}}} into a Secret of your own, and hand it to the servers as ARGOSY_AGENTS__MCP by extraEnv with valueFrom.secretKeyRef" $name . $name .) }}
{{- end }}
{{- end }}
{{- if dig "database" "dsn" "" .Values.settings }}
{{- fail "settings.database.dsn: settings are no place for secrets, whoever reads the pods' configuration reads them: put it into a Secret of your own, and name that in database.existingSecret" }}
{{- end }}
{{- $several := include "argosy.several" . }}
{{- if and .Values.persistence.enabled (not .Values.persistence.existingClaim) $several (not (has "ReadWriteMany" .Values.persistence.accessModes)) }}
{{- fail "persistence.accessModes: several pods share the claim: add ReadWriteMany, which the storage class must offer" }}
{{- end }}
{{- if and $several (not .Values.database.existingSecret) }}
{{- if eq .Values.mode "ray" }}
{{- fail "database.existingSecret: in mode ray the adapters' registry and the agents' runs must be the same on all nodes: name a Secret with the DSN of a PostgreSQL" }}
{{- else if .Values.persistence.enabled }}
{{- /* SQLite's log lies in memory that only processes of one machine share. */}}
{{- fail "database.existingSecret: several pods would write one SQLite file on their shared volume, which destroys it: name a Secret with the DSN of a PostgreSQL, or set persistence.enabled=false, where each pod has adapters and runs of its own" }}
{{- end }}
{{- end }}
{{- end }}
