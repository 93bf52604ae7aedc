{{- define "blend.account" -}}
{{- if .Values.serviceAccount.name }}{{ .Values.serviceAccount.name }}
{{- else if .Values.serviceAccount.create }}{{ .Release.Name }}
{{- else }}default{{ end -}}
{{- end }}

{{- define "blend.claim" -}}
{{ .Values.models.claim | default (printf "%s-models" .Release.Name) }}
{{- end }}

{{- define "blend.labels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{/* The config with the keys' file and with what the worker groups can grow to, unless it states them itself. */}}
{{- define "blend.config" -}}
{{- $config := deepCopy .Values.config }}
{{- $serve := $config.serve | default dict }}
{{- if .Values.keys.secret }}
{{- $serve = mergeOverwrite (dict "keys_file" "/keys/keys") $serve }}
{{- end }}
{{- $_ := set $config "serve" $serve }}
{{- $ray := $config.ray | default dict }}
{{- if not $ray.nodes }}
{{- $nodes := list }}
{{- range .Values.workers }}
{{- $nodes = append $nodes (dict "count" .maxReplicas "num_cpus" .cpu "num_gpus" (.gpus | default 0)) }}
{{- end }}
{{- $_ := set $ray "nodes" $nodes }}
{{- end }}
{{- $_ := set $config "ray" $ray }}
{{- toYaml $config }}
{{- end }}

{{/* A pod of the head or of a worker group. Arguments: root, group, container. */}}
{{- define "blend.pod" -}}
{{- $values := .root.Values -}}
spec:
  serviceAccountName: {{ include "blend.account" .root }}
  securityContext: {runAsNonRoot: true, runAsUser: 1000, fsGroup: 1000}
  {{- with $values.image.pullSecrets }}
  imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
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
  containers:
  - name: {{ .container }}
    image: {{ printf "%s:%s" $values.image.repository ($values.image.tag | default .root.Chart.AppVersion) | quote }}
    imagePullPolicy: {{ $values.image.pullPolicy }}
    env:  # gRPC between replicas: half the time of a call
    - {name: RAY_SERVE_USE_GRPC_BY_DEFAULT, value: "1"}
    - {name: RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD, value: "0"}
    - {name: RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP, value: "0"}
    - {name: RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE, value: "1000"}
    {{- with $values.env.variables }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
    {{- with $values.env.secret }}
    envFrom:
    - secretRef: {name: {{ . }}, optional: true}
    {{- end }}
    {{- if eq .container "ray-head" }}
    ports:
    - {containerPort: 6379, name: gcs-server}
    - {containerPort: 8265, name: dashboard}
    - {containerPort: 10001, name: client}
    - {containerPort: 8000, name: serve}
    {{- end }}
    resources:
      {{- range list "limits" "requests" }}
      {{ . }}:
        cpu: {{ $.group.cpu | quote }}
        memory: {{ $.group.memory | quote }}
        {{- if $.group.gpus }}
        nvidia.com/gpu: {{ $.group.gpus | quote }}
        {{- end }}
      {{- end }}
    volumeMounts:
    - {name: models, mountPath: /models}
    {{- if $values.keys.secret }}
    - {name: keys, mountPath: /keys, readOnly: true}
    {{- end }}
  volumes:
  - name: models
    persistentVolumeClaim: {claimName: {{ include "blend.claim" .root }}}
  {{- with $values.keys.secret }}
  - name: keys
    secret: {secretName: {{ . }}}
  {{- end }}
{{- end }}
