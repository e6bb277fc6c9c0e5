{{- /* A pod of Ray: `role` is head or worker, `group` the values of its group, `name` the group's name,
`profile` the way in. */}}
{{- define "argosy.rayPod" -}}
{{- $root := .root }}
{{- $component := printf "ray-%s" .role }}
{{- $worker := eq .role "worker" }}
{{- /* The autoscaler, in the head, asks Kubernetes for pods, as an account that KubeRay makes. */}}
{{- $autoscaler := and (not $worker) $root.Values.ray.autoscaler.enabled }}
metadata:
  labels:
    {{- include "argosy.labels" $root | nindent 4 }}
    app.kubernetes.io/component: {{ $component }}
    {{- with $root.Values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with include "argosy.podAnnotations" $root | trim }}
  annotations:
    {{- . | nindent 4 }}
  {{- end }}
spec:
  {{- if not $autoscaler }}
  serviceAccountName: {{ include "argosy.serviceAccount" $root }}
  {{- end }}
  automountServiceAccountToken: {{ $autoscaler }}
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ include "argosy.graceSeconds" $root }}
  {{- with $root.Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $root.Values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with .group.runtimeClassName }}
  runtimeClassName: {{ . }}
  {{- end }}
  securityContext:
    {{- include "argosy.podSecurity" $root | nindent 4 }}
  {{- if $worker }}
  {{- $compiling := ternary (list .group.resources) list (eq .name "gpu") }}
  {{- with include "argosy.initContainers" (concat (list $root .image) $compiling) | trim }}
  initContainers:
    {{- . | nindent 4 }}
  {{- end }}
  {{- end }}
  containers:
    - name: {{ $component }}
      image: {{ .image }}
      imagePullPolicy: {{ $root.Values.image.pullPolicy }}
      ports:
        {{- if $worker }}
        - {name: grpc, containerPort: 50051}
        - {name: http, containerPort: 8000}
        {{- if eq .profile "production" }}
        - {name: proxy-metrics, containerPort: 9101}
        {{- end }}
        {{- else }}
        - {name: gcs-server, containerPort: 6379}
        - {name: dashboard, containerPort: 8265}
        {{- end }}
        - {name: metrics, containerPort: 8080}
      env:
        - name: ARGOSY_HOST
          value: "0.0.0.0"
        - name: ARGOSY_DATA_DIR
          value: /var/lib/argosy
        {{- if $root.Values.insecure }}
        - name: ARGOSY_INSECURE
          value: "true"
        {{- end }}
        {{- include "argosy.homeEnv" $root | nindent 8 }}
        {{- with include "argosy.secretEnv" $root | trim }}
        {{- . | nindent 8 }}
        {{- end }}
        {{- include "argosy.rayEnv" $root | trim | nindent 8 }}
        {{- with $root.Values.extraEnv }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- if $worker }}
      startupProbe:
        httpGet: {path: /api/local_raylet_healthz, port: 52365}
        periodSeconds: 5
        timeoutSeconds: 5
        failureThreshold: 60
      # Of Ray Serve's proxy or HAProxy: there is one where a replica runs.
      readinessProbe:
        httpGet: {path: /-/healthz, port: http}
        periodSeconds: 5
        timeoutSeconds: 5
        failureThreshold: 2
      livenessProbe:
        httpGet: {path: /api/local_raylet_healthz, port: 52365}
        periodSeconds: 15
        timeoutSeconds: 10
        failureThreshold: 8
      lifecycle:
        preStop:
          exec:
            command: [python3, /etc/argosy/config/drain.py, {{ $root.Values.drainSeconds | quote }}, {{ $root.Values.preStopSeconds | quote }}]
      {{- else }}
      startupProbe:
        httpGet: {path: /api/gcs_healthz, port: dashboard}
        periodSeconds: 5
        timeoutSeconds: 5
        failureThreshold: 60
      readinessProbe:
        httpGet: {path: /api/gcs_healthz, port: dashboard}
        periodSeconds: 5
        timeoutSeconds: 5
        failureThreshold: 4
      livenessProbe:
        httpGet: {path: /api/gcs_healthz, port: dashboard}
        periodSeconds: 15
        timeoutSeconds: 10
        failureThreshold: 8
      lifecycle:
        preStop:
          exec:
            command: [sleep, {{ $root.Values.preStopSeconds | quote }}]
      {{- end }}
      resources:
        {{- toYaml .group.resources | nindent 8 }}
      securityContext:
        {{- include "argosy.containerSecurity" $root | nindent 8 }}
      volumeMounts:
        {{- include "argosy.volumeMounts" $root | nindent 8 }}
        {{- with $root.Values.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  volumes:
    {{- include "argosy.volumes" $root | nindent 4 }}
  {{- if $worker }}
  {{- $labels := printf "%s\napp.kubernetes.io/component: %s\nray.io/group: %s" (include "argosy.selector" $root) $component .name }}
  {{- with include "argosy.topologySpread" (list $root $labels) | trim }}
  topologySpreadConstraints:
    {{- . | nindent 4 }}
  {{- end }}
  {{- end }}
  {{- with .group.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .group.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .group.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}

{{- /* What every process of Ray must be started with; see `environment` in `cluster/serve_config.py`. */}}
{{- define "argosy.rayEnv" -}}
{{- $facts := include "argosy.facts" . | fromJson }}
{{- $all := include "argosy.allSettings" . | fromJson }}
{{- $message := int64 $all.max_message_bytes }}
{{- $sized := dict "RAY_SERVE_GRPC_MAX_MESSAGE_SIZE" $message "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH" (max $message 67108864) }}
{{- range $name, $value := get $facts.environment $all.cluster.profile }}
- name: {{ $name }}
  value: {{ default $value (get $sized $name) | quote }}
{{- end }}
{{- end }}
