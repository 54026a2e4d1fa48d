{{/* A pod's name is this and its number, and a node's id may have 63 letters. */}}
{{- define "quorumq.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "quorumq.peers" -}}
{{ include "quorumq.fullname" . }}-peers
{{- end -}}

{{/* The name of the peers' Service as every pod can resolve it, whatever the domain is. */}}
{{- define "quorumq.peersHost" -}}
{{ include "quorumq.peers" . }}.{{ .Release.Namespace }}.svc
{{- end -}}

{{- define "quorumq.selector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "quorumq.nodes" -}}
{{ include "quorumq.selector" . }}
app.kubernetes.io/component: node
{{- end -}}

{{- define "quorumq.labels" -}}
{{ include "quorumq.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Annotations of an object: its own, in the list's second place, over those of all. Nothing without any. */}}
{{- define "quorumq.annotations" -}}
{{- $root := index . 0 -}}
{{- $all := merge (dict) (default (dict) (index . 1)) $root.Values.commonAnnotations -}}
{{- with $all }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "quorumq.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- define "quorumq.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end -}}

{{- define "quorumq.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{ .Values.serviceAccount.name | default (include "quorumq.fullname" .) }}
{{- else -}}
{{ .Values.serviceAccount.name | default "default" }}
{{- end -}}
{{- end -}}

{{- define "quorumq.peerTlsSecret" -}}
{{- .Values.peerTls.existingSecret | default (printf "%s-peer-tls" (include "quorumq.fullname" .)) -}}
{{- end -}}

{{- define "quorumq.tlsSecret" -}}
{{- .Values.tls.existingSecret | default (printf "%s-tls" (include "quorumq.fullname" .)) -}}
{{- end -}}

{{- define "quorumq.scheme" -}}
{{- ternary "https" "http" .Values.tls.enabled -}}
{{- end -}}

{{- define "quorumq.url" -}}
{{ include "quorumq.scheme" . }}://{{ include "quorumq.fullname" . }}.{{ .Release.Namespace }}.svc:{{ .Values.service.ports.http }}
{{- end -}}

{{/* Of the Secret, what commands may see: the authority's certificate and not the key. */}}
{{- define "quorumq.commandMounts" -}}
- name: tmp
  mountPath: /tmp
{{- if and .Values.tls.enabled .Values.tls.caKey }}
- name: tls-ca
  mountPath: /etc/quorumq/tls-ca
  readOnly: true
{{- end }}
{{- end -}}

{{- define "quorumq.commandVolumes" -}}
- name: tmp
  emptyDir: {}
{{- if and .Values.tls.enabled .Values.tls.caKey }}
- name: tls-ca
  secret:
    secretName: {{ include "quorumq.tlsSecret" . }}
    defaultMode: 0440
    items:
      - key: {{ .Values.tls.caKey }}
        path: ca.crt
{{- end }}
{{- end -}}

{{/* What commands of Jobs send, and where. */}}
{{- define "quorumq.commandEnv" -}}
- name: QUORUMQ_URL
  value: {{ include "quorumq.url" . }}
{{- if and .Values.tls.enabled .Values.tls.caKey }}
- name: QUORUMQ_CA
  value: /etc/quorumq/tls-ca/ca.crt
{{- end }}
{{- if .Values.auth.enabled }}
- name: QUORUMQ_TOKEN
  valueFrom:
    secretKeyRef:
      name: {{ .Values.auth.existingSecret }}
      key: {{ .Values.auth.tokenKey }}
{{- end }}
{{- end -}}

{{/* The settings' file: `config`, and nothing that is a variable of the container. */}}
{{- define "quorumq.settings" -}}
{{- range $key, $value := .Values.config }}
{{- if kindIs "slice" $value }}
{{ $key }} = {{ $value | toJson }}
{{- else if or (kindIs "bool" $value) (kindIs "string" $value) }}
{{ $key }} = {{ $value | toString | quote }}
{{- else }}
{{ $key }} = {{ $value | int64 }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Stop where values do not fit together, with what to change. */}}
{{- define "quorumq.check" -}}
{{- if not (has (int .Values.replicaCount) (list 1 3 5 7)) -}}
{{- fail "replicaCount must be 1, 3, 5 or 7: an even number survives no more than one less" -}}
{{- end -}}
{{- $delay := int64 (default 5000 (get .Values.config "shutdown_delay_ms")) -}}
{{- $finish := int64 (default 10000 (get .Values.config "shutdown_timeout_ms")) -}}
{{- $needed := div (add $delay $finish 15999) 1000 -}}
{{- if lt (int64 .Values.terminationGracePeriodSeconds) (int64 $needed) -}}
{{- fail (printf "terminationGracePeriodSeconds must be at least %d: shutdown_delay_ms, shutdown_timeout_ms and 15 s" $needed) -}}
{{- end -}}
{{- $noticed := mul (int64 .Values.readinessProbe.periodSeconds) (int64 .Values.readinessProbe.failureThreshold) 1000 -}}
{{- if and .Values.readinessProbe.enabled (ge (int64 $noticed) $delay) -}}
{{- fail "readinessProbe: periodSeconds times failureThreshold must be less than config.shutdown_delay_ms (5000), or a node that stops gets requests to its end" -}}
{{- end -}}
{{- range .Values.extraEnvVars -}}
{{- if eq (.name | toString | upper) "CLOCK" -}}
{{- fail "extraEnvVars: CLOCK is for tests of one node alone, and not for a release" -}}
{{- end -}}
{{- end -}}
{{- if and .Values.peerTls.enabled (not .Values.peerTls.existingSecret) (not .Values.peerTls.certManager.enabled) -}}
{{- fail "peerTls.enabled needs peerTls.existingSecret or peerTls.certManager.enabled" -}}
{{- end -}}
{{- if and .Values.peerTls.certManager.enabled (not .Values.peerTls.certManager.issuerRef.name) -}}
{{- fail "peerTls.certManager.enabled needs peerTls.certManager.issuerRef.name" -}}
{{- end -}}
{{- if and .Values.tls.enabled (not .Values.tls.existingSecret) (not .Values.tls.certManager.enabled) -}}
{{- fail "tls.enabled needs tls.existingSecret or tls.certManager.enabled" -}}
{{- end -}}
{{- if and .Values.tls.certManager.enabled (not .Values.tls.certManager.issuerRef.name) -}}
{{- fail "tls.certManager.enabled needs tls.certManager.issuerRef.name" -}}
{{- end -}}
{{- if and .Values.backup.enabled (not .Values.auth.enabled) -}}
{{- fail "backup.enabled needs auth.enabled: without tokens /admin is for the node's own machine" -}}
{{- end -}}
{{- if and .Values.restore.enabled (not (and .Values.restore.existingClaim .Values.restore.file)) -}}
{{- fail "restore.enabled needs restore.existingClaim and restore.file" -}}
{{- end -}}
{{- end -}}

{{- define "quorumq.storageClass" -}}
{{- if eq . "-" -}}
storageClassName: ""
{{- else if . -}}
storageClassName: {{ . }}
{{- end -}}
{{- end -}}

{{/* What the pods of Jobs have in common. */}}
{{- define "quorumq.jobPod" -}}
serviceAccountName: {{ include "quorumq.serviceAccount" . }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- include "quorumq.pullSecrets" . }}
securityContext:
  {{- toYaml .Values.podSecurityContext | nindent 2 }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
