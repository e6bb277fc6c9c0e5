{{- /* What the code says of settings and of Ray Serve; scripts/generate_chart.py writes it. */}}
{{- define "argosy.facts" -}}
{{- .Files.Get "files/serve.json" }}
{{- end }}

{{- /* The settings that are not left to their defaults, as JSON. */}}
{{- define "argosy.settings" -}}
{{- $own := dict "host" "0.0.0.0" "data_dir" "/var/lib/argosy" }}
{{- $first := dict }}
{{- if .Values.insecure }}{{ $_ := set $own "insecure" true }}{{ end }}
{{- if eq .Values.mode "ray" }}
{{- $_ := set $first "cluster" (dict "profile" "production") }}
{{- $_ := set $own "cluster" (dict "drain_seconds" .Values.drainSeconds) }}
{{- else }}
{{- $_ := set $own "port" 50051 }}
{{- $_ := set $own "metrics_host" "0.0.0.0" }}
{{- $_ := set $own "metrics_port" 50052 }}
{{- $_ := set $own "drain_seconds" .Values.drainSeconds }}
{{- if .Values.tls.enabled }}
{{- $_ := set $own "tls_certificate" "/etc/argosy/tls/tls.crt" }}
{{- $_ := set $own "tls_key" "/etc/argosy/tls/tls.key" }}
{{- end }}
{{- end }}
{{- if .Values.compile.enabled }}
{{- $compiled := dict "mode" "compiled" "engine_dir" "/var/lib/argosy/engines" }}
{{- $_ := set $own "generation" (dict "engine" "tensorrt_llm" "tensorrt_llm" $compiled) }}
{{- end }}
{{- mergeOverwrite $first (deepCopy .Values.settings) $own | toJson }}
{{- end }}

{{- /* All settings, as JSON. */}}
{{- define "argosy.allSettings" -}}
{{- $facts := include "argosy.facts" . | fromJson }}
{{- $settings := include "argosy.settings" . | fromJson }}
{{- /* Whoever names some of a deployment's replicas leaves the others to the defaults of all deployments. */}}
{{- range $name, $_ := pick (default dict $settings.cluster) "tokenization" "generation" "engine" "embeddings" "agents" }}
{{- $_ := set $facts.defaults.cluster $name (deepCopy $facts.replicas) }}
{{- end }}
{{- mergeOverwrite $facts.defaults $settings | toJson }}
{{- end }}

{{- /* Of a list of values and defaults, what differs, as JSON. */}}
{{- define "argosy.changed" -}}
{{- $defaults := index . 1 }}
{{- $changed := dict }}
{{- range $name, $value := index . 0 }}
{{- $default := get $defaults $name }}
{{- /* Entries of a map that is empty by default have no defaults of their own. */}}
{{- if and (kindIs "map" $value) (kindIs "map" $default) }}
{{- $inner := include "argosy.changed" (list $value $default) | fromJson }}
{{- if $inner }}{{ $_ := set $changed $name $inner }}{{ end }}
{{- else if ne (toJson $value) (toJson $default) }}
{{- $_ := set $changed $name $value }}
{{- end }}
{{- end }}
{{- toJson $changed }}
{{- end }}

{{- /* What Ray Serve is told, as JSON: what `argosy deploy` would tell it, besides the placement on worker groups. */}}
{{- define "argosy.serveConfig" -}}
{{- $root := . }}
{{- $facts := include "argosy.facts" . | fromJson }}
{{- $all := include "argosy.allSettings" . | fromJson }}
{{- $changed := include "argosy.changed" (list $all $facts.defaults) | fromJson }}
{{- $config := $facts.config }}
{{- $_ := set $config.http_options "host" $all.host }}
{{- range $application := $config.applications }}
{{- $fixed := dict }}
{{- $live := dict }}
{{- range $name, $value := $changed }}
{{- if not (kindIs "map" $value) }}
{{- $_ := set (ternary $live $fixed (has $name (get $facts.live ""))) $name $value }}
{{- else }}
{{- range $key, $inner := $value }}
{{- if or (eq $name $application.name) (has $name $facts.common) (has $key $facts.shared) }}
{{- $side := ternary $live $fixed (has $key (get $facts.live $name)) }}
{{- $_ := set $side $name (merge (dict $key $inner) (default dict (get $side $name))) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- $_ := set $application "args" $fixed }}
{{- range $deployment := $application.deployments }}
{{- $_ := set $deployment "user_config" $live }}
{{- $_ := set $deployment "graceful_shutdown_timeout_s" $all.cluster.drain_seconds }}
{{- if ne $deployment.name "Adapters" }}
{{- include "argosy.scale" (list $deployment $all.cluster) }}
{{- end }}
{{- include "argosy.place" (list $root $deployment $all.cluster) }}
{{- end }}
{{- end }}
{{- toPrettyJson $config }}
{{- end }}

{{- /* Sets replicas and resources of a deployment; see `cluster/serve_config.py`. */}}
{{- define "argosy.scale" -}}
{{- $deployment := index . 0 }}
{{- $cluster := index . 1 }}
{{- $replicas := get $cluster (lower $deployment.name) }}
{{- $_ := set $deployment "ray_actor_options" (dict "num_cpus" $replicas.cpus "num_gpus" $replicas.gpus) }}
{{- if or (gt (int $replicas.max) 1) (eq (int $replicas.min) 0) }}
{{- $scaling := $deployment.autoscaling_config }}
{{- $_ := set $scaling "min_replicas" $replicas.min }}
{{- $_ := set $scaling "max_replicas" $replicas.max }}
{{- $_ := set $scaling "upscale_delay_s" $cluster.upscale_seconds }}
{{- $_ := set $scaling "downscale_delay_s" $cluster.downscale_seconds }}
{{- $_ := set $scaling "look_back_period_s" (maxf 2 $cluster.upscale_seconds) }}
{{- if eq $deployment.name "Engine" }}
{{- $limits := dict "waiting_tokens" $cluster.engine_waiting_tokens "kv_use" $cluster.engine_kv_use }}
{{- $_ := set $scaling.policy "policy_kwargs" $limits }}
{{- end }}
{{- else }}
{{- $_ := unset $deployment "autoscaling_config" }}
{{- $_ := set $deployment "num_replicas" $replicas.min }}
{{- end }}
{{- if and (eq $deployment.name "Engine") (gt (int $cluster.engine_gpus) 1) }}
{{- $_ := unset $deployment.ray_actor_options "num_gpus" }}
{{- $bundles := list (dict "CPU" $replicas.cpus "GPU" 1) }}
{{- range until (int (sub $cluster.engine_gpus 1)) }}
{{- $bundles = append $bundles (dict "CPU" 1 "GPU" 1) }}
{{- end }}
{{- $_ := set $deployment "placement_group_bundles" $bundles }}
{{- $_ := set $deployment "placement_group_strategy" "STRICT_PACK" }}
{{- end }}
{{- end }}

{{- /* Whether engines take GPUs: not empty if so. */}}
{{- define "argosy.enginesOnGpus" -}}
{{- if or (gt (float64 .engine.gpus) 0.0) (gt (int .engine_gpus) 0) }}yes{{ end }}
{{- end }}

{{- /* Ties a deployment to the worker group that has the custom resource. */}}
{{- define "argosy.place" -}}
{{- $root := index . 0 }}
{{- $deployment := index . 1 }}
{{- $name := lower $deployment.name }}
{{- $gpus := and (eq $name "engine") (include "argosy.enginesOnGpus" (index . 2)) }}
{{- $group := ternary "gpu" (get $root.Values.ray.placement $name) (not (empty $gpus)) }}
{{- if not (get $root.Values.ray.groups $group).enabled }}
{{- fail (printf "ray.groups.%s.enabled is false, and %s runs there: enable the group, or change ray.placement.%s" $group $name $name) }}
{{- end }}
{{- if ne $group "gpu" }}
{{- $_ := set $deployment.ray_actor_options "resources" (dict (printf "argosy-%s" $group) 0.001) }}
{{- end }}
{{- end }}

{{- /* Names and sources of the models that servers load, separated by spaces. */}}
{{- define "argosy.models" -}}
{{- $all := include "argosy.allSettings" . | fromJson }}
{{- concat (list $all.generation.model $all.embeddings.model $all.generation.draft_model) .Values.models.extra | compact | uniq | toJson }}
{{- end }}
