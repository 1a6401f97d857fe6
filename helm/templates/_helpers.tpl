{{/* The template named .template once for each word, with its values over the defaults; with .edge for the edge too. */}}
{{- define "tradeloom.each" -}}
{{- if gt (len .root.Release.Name) 40 }}{{ fail "the release's name is longer than 40 characters, so names made from it would be too long" }}{{ end }}
{{- range $name, $own := .root.Values.services }}
{{- $service := mergeOverwrite (deepCopy $.root.Values.defaults) (deepCopy $own) }}
---
{{ include $.template (dict "root" $.root "name" $name "service" $service) }}
{{- end }}
{{- if .edge }}
---
{{ include .template (dict "root" .root "name" "edge" "service" (merge (dict "mesh" true) .root.Values.edge)) }}
{{- end }}
{{- end }}

{{- define "tradeloom.selector" -}}
app.kubernetes.io/name: {{ .name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- end }}

{{/* What may speak mutual TLS within the mesh is of component `mesh` or `edge`. */}}
{{- define "tradeloom.labels" -}}
{{ include "tradeloom.selector" . }}
app.kubernetes.io/part-of: tradeloom
app.kubernetes.io/component: {{ include "tradeloom.component" . }}
{{- end }}

{{- define "tradeloom.component" -}}
{{- if has .name (list "edge" "migrations") }}{{ .name }}{{ else if .service.mesh }}mesh{{ else }}pages{{ end }}
{{- end }}

{{- define "tradeloom.metadata" -}}
name: {{ .root.Release.Name }}-{{ .name }}
labels:
  {{- include "tradeloom.labels" . | nindent 2 }}
  app.kubernetes.io/managed-by: {{ .root.Release.Service }}
  app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
  helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version }}
{{- end }}

{{- define "tradeloom.image" -}}
{{- $image := .Values.image -}}
{{ $image.repository }}{{ if $image.digest }}@{{ $image.digest }}{{ else }}:{{ $image.tag | default .Chart.AppVersion }}{{ end }}
{{- end }}

{{/* The head of every pod: nobody's account at Kubernetes, an ordinary user, no way up. */}}
{{- define "tradeloom.pod" -}}
serviceAccountName: {{ .root.Release.Name }}-{{ .name }}
automountServiceAccountToken: false
# Kubernetes' own variables for each Service look like our settings.
enableServiceLinks: false
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  seccompProfile: {type: RuntimeDefault}
{{- end }}

{{/* Spread over machines and zones, each revision for itself. */}}
{{- define "tradeloom.placement" -}}
topologySpreadConstraints:
  {{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - topologyKey: {{ . }}
    maxSkew: 1
    whenUnsatisfiable: ScheduleAnyway
    matchLabelKeys: [pod-template-hash]
    labelSelector:
      matchLabels:
        {{- include "tradeloom.selector" $ | nindent 8 }}
  {{- end }}
{{- with .service.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .service.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "tradeloom.container" -}}
image: {{ include "tradeloom.image" .root }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end }}

{{/* How Postgres proves who it is; with .mounts the place of its authority. */}}
{{- define "tradeloom.postgresTls" -}}
- {name: PGSSLMODE, value: {{ .Values.data.postgresTlsMode }}}
- {name: PGSSLROOTCERT, value: {{ ternary "/etc/tradeloom/data/ca.crt" "/etc/ssl/certs/ca-certificates.crt" (ne .Values.data.authoritySecret "") }}}
{{- end }}

{{- define "tradeloom.certificateVolume" -}}
- name: tls
  secret:
    secretName: {{ .root.Release.Name }}-{{ .name }}-tls
    defaultMode: 0440
    # Named as everywhere else; a renewed certificate is read without a restart.
    items:
      - {key: ca.crt, path: ca.pem}
      - {key: tls.crt, path: {{ .name }}.pem}
      - {key: tls.key, path: {{ .name }}.key}
{{- end }}

{{- define "tradeloom.dataVolume" -}}
- name: data
  secret:
    secretName: {{ .Values.data.authoritySecret }}
    defaultMode: 0440
    items:
      - {key: ca.crt, path: ca.crt}
{{- end }}

{{- define "tradeloom.dns" -}}
- ports:
    - {port: 53, protocol: UDP}
    - {port: 53, protocol: TCP}
{{- end }}

{{- define "tradeloom.postgresEgress" -}}
- ports:
    - {port: {{ .Values.networkPolicy.postgres.port }}, protocol: TCP}
  {{- with .Values.networkPolicy.postgres.to }}
  to:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}
